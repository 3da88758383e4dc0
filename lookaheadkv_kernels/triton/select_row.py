"""Room 3 for score rows that fit the registers of one program: max-pool and exact Top-K.

The budget-th largest key is found bit by bit: 32 counts over a row that never leaves the registers.
What ties with it is kept from the smallest position on. Longer rows: select_long.py.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from . import splits
from .launch import launch, target_for
from .problem import strides
from .select_keys import fill_slots, kept_count, load_keys_of_row
from .tiles import valid_keys


@triton.jit(
    do_not_specialize=[
        "kv_heads",
        "budget",
        "half",
        "num_sink",
        "num_recent",
        "append_rows",
        "num_slots",
    ]
)
def select_row_kernel(
    scores_ptr,  # [B, Hkv, N] float32; POOLED: int32 rank keys, contiguous
    out_ptr,  # [B, Hkv, num_slots] int32
    leftpad_ptr,  # [B] int32 or None
    seqused_ptr,  # [B] int32 or None
    counts_ptr,  # [B] int32, instead of budget, or None
    appended_ptr,  # [B] int32, instead of append_rows, or None
    stride_b,
    stride_h,
    stride_n,
    kv_heads,
    num_prompt,
    budget,
    half,
    num_sink,
    num_recent,
    append_rows,
    num_slots,
    POOLED: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One row, held in registers."""
    unit = tl.program_id(0).to(tl.int64)
    b = unit // kv_heads
    first, last = valid_keys(leftpad_ptr, seqused_ptr, b, num_prompt)
    row_ptr = scores_ptr + b * stride_b + (unit % kv_heads) * stride_h
    at = tl.arange(0, BLOCK)
    key = load_keys_of_row(row_ptr, stride_n, at, first, last, half, num_sink, num_recent, POOLED)
    valid = (at >= first) & (at < last)
    count = kept_count(budget, counts_ptr, b, last - first)

    # The largest threshold that at least ``count`` valid keys reach, from the highest bit down.
    threshold = tl.zeros([1], tl.uint32)
    for bit in range(32):
        candidate = threshold | (tl.full([1], 0x80000000, tl.uint32) >> bit)
        reached = tl.sum((valid & (key >= candidate)).to(tl.int32), 0)
        threshold = tl.where(reached >= count, candidate, threshold)
    wanted = count - tl.sum((valid & (key > threshold)).to(tl.int32), 0)

    # Read again in chunks: the row, its ranks and its slots together would not fit the registers.
    out_row = out_ptr + unit * num_slots
    num_equal = 0
    num_kept = 0
    for start in range(0, num_prompt, CHUNK):
        position = start + tl.arange(0, CHUNK)
        chunk_key = load_keys_of_row(
            row_ptr, stride_n, position, first, last, half, num_sink, num_recent, POOLED
        )
        inside = (position >= first) & (position < last)
        equal = (inside & (chunk_key == threshold)).to(tl.int32)
        tie = (equal != 0) & (num_equal + tl.cumsum(equal, 0) <= wanted)
        kept = ((inside & (chunk_key > threshold)) | tie).to(tl.int32)
        slot = num_kept + tl.cumsum(kept, 0) - kept
        tl.store(out_row + slot, position, mask=kept != 0)
        num_equal += tl.sum(equal, 0)
        num_kept += tl.sum(kept, 0)
    fill_slots(out_row, count, num_prompt, last, append_rows, appended_ptr, b, num_slots, CHUNK)


def select_row(
    scores: Tensor,  # [B, Hkv, N] float32; pooled: int32 rank keys, contiguous
    half: int,  # of the pool
    pooled: bool,
    arguments: dict[str, Any],  # those that both forms of select take
) -> None:
    """Write the kept positions of every row."""
    batch, heads, length = scores.shape
    block = max(16, splits.next_power_of_two(length))
    launch(
        select_row_kernel,
        (batch * heads,),
        scores,
        scores_ptr=scores,
        **strides("", scores, "bhn"),
        half=half,
        POOLED=pooled,
        BLOCK=block,
        CHUNK=min(block, splits.SELECT_CHUNK),
        num_warps=splits.select_warps(length, target_for(scores)),
        **arguments,
    )
