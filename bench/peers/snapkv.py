"""SnapKV as kvpress has it (github.com/NVIDIA/kvpress, `presses/snapkv_press.py`, 0.5).

Its arithmetic alone: the queries of the observation window come ready, rotated. Unlike the paper's
code it pools by averages, before the mean over the group, and keeps the window by giving it a score
above all others, which needs that score on the host.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.peers.eager import repeat_kv


def snapkv_scores(
    query: Tensor,  # [B, Hq, W, D], the window
    key: Tensor,  # [B, Hkv, S, D], the window's own keys last
    pool_kernel: int = 5,
) -> Tensor:
    """Scores [B, Hkv, S] in the query's dtype; the window's are above all others."""
    batch, heads, window, head_dim = query.shape
    kv_heads, length = key.shape[1:3]
    keys = repeat_kv(key, heads // kv_heads)
    weights = torch.matmul(query, keys.transpose(2, 3)) / math.sqrt(head_dim)
    hidden = torch.full_like(weights, float("-inf"))
    weights += hidden.triu(diagonal=length - window + 1)
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    scores = weights[..., :-window].mean(dim=-2)
    scores = F.avg_pool1d(scores, pool_kernel, stride=1, padding=pool_kernel // 2)
    scores = scores.view(batch, kv_heads, heads // kv_heads, length - window).mean(dim=2)
    return F.pad(scores, (0, window), value=scores.max().item() + 1)


def snapkv_compress(
    query: Tensor,  # [B, Hq, W, D]
    key: Tensor,  # [B, Hkv, S, D]
    value: Tensor,  # [B, Hkv, S, D]
    budget: int,
) -> tuple[Tensor, Tensor]:
    """Kept key and value [B, Hkv, budget, D], in the order of their scores."""
    indices = snapkv_scores(query, key).topk(min(budget, key.shape[2]), dim=-1).indices
    rows = indices[..., None].expand(-1, -1, -1, key.shape[-1])
    return key.gather(2, rows).contiguous(), value.gather(2, rows).contiguous()
