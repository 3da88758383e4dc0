"""Is what the op kept right? Checked per layer and KV head against the project's reference."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from demo_cache import Evicted
from lookaheadkv_kernels.python_ref import score_and_evict, select
from torch import Tensor

SAME_BAR = 0.999


@dataclass(frozen=True)
class Agreement:
    """Counts over layers and heads; ``+`` joins them."""

    heads: int = 0
    exact_heads: int = 0  # kept positions are the reference's selection of the op's own scores
    kept: int = 0
    same: int = 0  # of those, kept by the reference run end to end in float32
    chosen: int = 0  # kept for their score: without the observation positions
    same_as_eager: int = 0  # of those, kept by the paper-style eager code

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            *(getattr(self, f.name) + getattr(other, f.name) for f in fields(Agreement))
        )

    @property
    def passed(self) -> bool:
        """Both bars: every head exact, at least 99.9 % the same end to end."""
        return self.exact_heads == self.heads and self.same >= SAME_BAR * self.kept


def count_common(a: Tensor, b: Tensor) -> int:
    """How many of the positions a [B, H, K] are among b [B, H, M], head by head (each distinct)."""
    return int((a[..., :, None] == b[..., None, :]).any(dim=-1).sum())


def check_layer(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N + L, D], before the eviction
    value: Tensor,  # [B, Hkv, N + L, D]
    evicted: Evicted,
    eager_indices: Tensor,  # [B, Hkv, K'], kept by the eager code, any order
    budget: int,
) -> Agreement:
    """Compare one layer's eviction with the reference and with the eager code."""
    rows, prompt = query.shape[2], key.shape[2] - query.shape[2]
    batch, heads, kept = evicted.indices.shape
    chosen = select(evicted.scores, budget - rows)
    observed = torch.arange(prompt, prompt + rows, dtype=torch.int32).expand(batch, heads, rows)
    expected = torch.cat([chosen, observed], dim=-1)
    exact = int((evicted.indices == expected).all(dim=-1).sum()) if kept == expected.shape[2] else 0
    reference = score_and_evict(
        query.float(), key.float(), value.float(), budget, keep_observation=True
    )
    return Agreement(
        heads=batch * heads,
        exact_heads=exact,
        kept=batch * heads * kept,
        same=count_common(evicted.indices, reference.indices),
        chosen=chosen.numel(),
        same_as_eager=count_common(evicted.indices, eager_indices),
    )
