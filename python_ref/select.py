"""Room 3: max-pool and Top-K with a defined order: larger first, ties to the smaller position."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def max_pool(scores: Tensor, pool_kernel: int = 7) -> Tensor:
    """Centred stride-1 max over ``pool_kernel`` neighbours; what is outside never counts.

    NaN ranks below every number here as in the Top-K: it wins no window, and a window holds NaN
    only where all of it is NaN.
    """
    half = pool_kernel // 2
    windows = F.pad(scores, (half, half), value=math.nan).unfold(-1, pool_kernel, 1)
    best = windows.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf).amax(-1)
    return best.masked_fill(windows.isnan().all(-1), math.nan)


def _rank(pooled: Tensor) -> Tensor:
    """Positions from best to worst: numbers descending, then NaN; ties ascending in position."""
    nan_last = pooled.isnan().to(torch.int8)
    by_value = pooled.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf).argsort(
        descending=True, stable=True
    )
    return by_value[nan_last[by_value].argsort(stable=True)]


def select(
    scores: Tensor,  # [B, Hkv, N]
    budget: int,
    *,
    pool_kernel: int = 7,
    num_sink: int = 0,
    num_recent: int = 0,
    leftpad_k: Tensor | None = None,  # [B] int32
    seqused_k: Tensor | None = None,  # [B] int32
) -> Tensor:
    """Kept positions, ascending, int32 [B, Hkv, min(budget, N)]; unused slots at the end are -1.

    Only positions ``leftpad_k[b] <= j < seqused_k[b]`` are pooled over or kept. The first
    ``num_sink`` and last ``num_recent`` of them are kept whatever their score, inside the budget.
    """
    batch, heads, num_keys = scores.shape
    kept = torch.full((batch, heads, min(budget, num_keys)), -1, dtype=torch.int32)
    for b in range(batch):
        first = 0 if leftpad_k is None else int(leftpad_k[b])
        last = num_keys if seqused_k is None else int(seqused_k[b])
        valid = max(0, last - first)
        count = min(budget, valid)
        if valid == 0:
            continue
        for h in range(heads):
            pooled = max_pool(scores[b, h, first : first + valid], pool_kernel)
            order = _rank(pooled)
            pinned = (order < num_sink) | (order >= valid - num_recent)
            order = torch.cat([order[pinned], order[~pinned]])
            kept[b, h, :count] = (order[:count].sort().values + first).to(torch.int32)
    return kept.to(scores.device)
