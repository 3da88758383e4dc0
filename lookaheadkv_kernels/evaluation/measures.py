"""Measures that need no labels: how much of what the answer attends to a policy keeps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def group_mean(scores: Tensor, num_kv_heads: int) -> Tensor:
    """[Hq, N] -> [Hkv, N]: mean over the query heads that share a KV head."""
    return scores.view(num_kv_heads, -1, scores.shape[-1]).mean(dim=1)


def kept_mass(scores: Tensor, positions: Tensor) -> Tensor:
    """Share of the ground-truth attention that kept entries hold: [Hkv].

    ``scores`` [Hkv, N] are ground-truth importances, ``positions`` [Hkv, K] what was kept, -1 in
    empty slots.
    """
    taken = scores.gather(1, positions.clamp(min=0).to(torch.int64)).masked_fill(positions < 0, 0)
    return taken.sum(dim=1) / scores.sum(dim=1)


def recall(scores: Tensor, positions: Tensor) -> Tensor:
    """Share of the K best prompt entries by ``scores`` [Hkv, N] among ``positions`` [Hkv, K]."""
    best = scores.topk(positions.shape[1], dim=1).indices
    hits = (best[:, :, None] == positions[:, None, :]).any(dim=2)
    return hits.float().mean(dim=1)


def mean_over_layers(values: Sequence[Tensor]) -> float:
    """Mean over layers and heads."""
    return float(torch.stack([value.mean() for value in values]).mean())
