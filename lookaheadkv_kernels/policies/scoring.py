"""Column scores for rows that are no lookahead rows, by the ops, and choices that keep a window."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import gather_kv, lookahead_attention, select
from ..unmasked import grouped, logits_of
from .base import Kept, LayerCall

# Rows of a causal pass that are scored at once: they take this many squared logits per head.
ROW_BLOCK = 128


def causal_column_sums(
    query: Tensor,  # [B, Hq, q, D]
    key: Tensor,  # [B, Hkv, S, D], the last q are the query's own
    scale: float,
) -> Tensor:
    """What each key receives from all q rows: sum over rows, mean over the group, [B, Hkv, S].

    The rows go through in blocks: the op gives the scores of the keys before a block and the
    rows' log-sum-exp; the block's own triangle is small enough for plain PyTorch. No q x S matrix.
    """
    rows, stored = query.shape[2], key.shape[2]
    sums = torch.zeros(key.shape[:3], dtype=torch.float32, device=key.device)
    for start in range(0, rows, ROW_BLOCK):
        block = query[:, :, start : start + ROW_BLOCK]
        length = block.shape[2]
        before = stored - rows + start
        seen = key[:, :, : before + length]
        # Only the log-sum-exp is wanted of the output, so any values do.
        _, lse, scores = lookahead_attention(block, seen, seen, scale=scale)
        own = (logits_of(block, seen[:, :, before:], scale) - grouped(lse, key.shape[1])).exp()
        sums[:, :, :before] += scores * length
        sums[:, :, before : before + length] += own.tril().sum(dim=3).mean(dim=2)
    return sums


def everything(call: LayerCall, num_entries: int) -> Tensor:
    """Positions of the first ``num_entries`` entries, in every head: int32 [B, Hkv, n]."""
    positions = torch.arange(num_entries, dtype=torch.int32, device=call.key.device)
    return positions.expand(*call.key.shape[:2], num_entries)


def check_window(name: str, budget: int, window: int) -> None:
    """Refuse a budget that cannot hold the observation window."""
    if budget < window:
        raise RuntimeError(f"{name}: budget must hold the window of {window} entries, got {budget}")


def keep_best_and_window(
    call: LayerCall,
    name: str,
    scores: Tensor,  # [B, Hkv, n - window]
    num_prompt: int,
    window: int,
    pool_kernel: int,
) -> Kept:
    """The last ``window`` of ``num_prompt`` = n entries, and the best of those before.

    Raises:
        RuntimeError: the budget cannot hold the window.
    """
    indices = everything(call, num_prompt)
    if num_prompt > call.budget:
        check_window(name, call.budget, window)
        indices = indices[:, :, num_prompt - window :]
        if call.budget > window:
            best = select(scores, call.budget - window, pool_kernel=pool_kernel)
            indices = torch.cat([best, indices], dim=2)
    return Kept(*gather_kv(call.key, call.value, indices), indices, scores)
