"""What models run for the rows' output: torch's fused attention, which keeps no probabilities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.peers.eager import eager_scores


def sdpa(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N + L, D]
    value: Tensor,  # [B, Hkv, N + L, D]
) -> Tensor:
    """Attention output [B, Hq, L, D] of the last rows: no scores."""
    rows, keys = query.shape[2], key.shape[2]
    mask = torch.ones(rows, keys, dtype=torch.bool, device=query.device).tril(keys - rows)
    return F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)


def sdpa_and_eager_scores(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Fused attention, and the probabilities once more for the scores (paper, appendix C)."""
    return sdpa(query, key, value), eager_scores(query, key)
