"""Room 3: max-pool and exact Top-K of score rows, by the form that fits their length."""

from __future__ import annotations

from torch import Tensor

from . import splits
from .problem import Selection
from .select_keys import pool
from .select_long import select_long
from .select_row import select_row


def select(
    scores: Tensor,  # [B, Hkv, N] float32, any strides
    selection: Selection,
    leftpad_k: Tensor | None,  # [B] int32, contiguous
    seqused_k: Tensor | None,
    out: Tensor,  # [B, Hkv, slots] int32, contiguous
) -> None:
    """Write the kept positions, ascending, then the appended rows, then -1."""
    heads, length = scores.shape[1:]
    half = min(selection.pool_kernel // 2, length)
    pooled = length > splits.MAX_ROW_POOLED_IN_REGISTERS or half > splits.MAX_FUSED_POOL // 2
    if pooled:
        scores = pool(scores, half, leftpad_k, seqused_k)
    arguments = {
        "out_ptr": out,
        "leftpad_ptr": leftpad_k,
        "seqused_ptr": seqused_k,
        "counts_ptr": selection.counts,
        "appended_ptr": selection.appended,
        "kv_heads": heads,
        "num_prompt": length,
        "budget": min(selection.budget, length),
        "num_sink": min(selection.num_sink, length),
        "num_recent": min(selection.num_recent, length),
        "append_rows": selection.append_rows,
        "num_slots": out.shape[2],
    }
    if length > splits.MAX_ROW_IN_REGISTERS:
        select_long(scores, arguments)
    else:
        select_row(scores, half, pooled, arguments)
