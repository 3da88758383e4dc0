"""Room 3: max-pool and exact Top-K of score rows that fit the registers of one program.

Scores become unsigned rank keys (a larger key is a better score, NaN the lowest), so that the pool
and the Top-K are integer work and every bit counts. The budget-th largest key is found bit by bit:
32 counts over a row that never leaves the registers. What ties with it is kept from the smallest
position on. Longer rows: select_long.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import heuristics
from .launch import launch, target_for
from .tiles import row_block, valid_keys

PINNED = tl.constexpr(0xFFFFFFFF)  # above the key of +infinity


@triton.jit
def rank_key(score):
    """float32 -> uint32 in the order of the Top-K: NaN 0, -0.0 and 0.0 alike."""
    bits = (score + 0.0).to(tl.uint32, bitcast=True)
    key = bits ^ tl.where((bits >> 31) != 0, 0xFFFFFFFF, 0x80000000).to(tl.uint32)
    return tl.where(score != score, 0, key).to(tl.uint32)


@triton.jit
def pooled_keys(scores_ptr, stride, at, first, last, half):
    """Largest rank key among positions at - half .. at + half that lie in first .. last - 1."""
    best = tl.zeros_like(at).to(tl.uint32)
    for shift in range(-half, half + 1):
        j = at + shift
        inside = (j >= first) & (j < last)
        score = tl.load(scores_ptr + j.to(tl.int64) * stride, mask=inside, other=float("nan"))
        best = tl.maximum(best, rank_key(score))
    return best


@triton.jit
def load_keys_of_row(
    scores_ptr, stride, at, first, last, half, num_sink, num_recent, POOLED: tl.constexpr
):
    """Rank keys of positions ``at``, pooled now or (POOLED) before; pinned ones above all."""
    if POOLED:
        inside = (at >= first) & (at < last)
        key = tl.load(scores_ptr + at, mask=inside, other=0).to(tl.uint32, bitcast=True)
    else:
        key = pooled_keys(scores_ptr, stride, at, first, last, half)
    pinned = (at < first + num_sink) | (at >= last - num_recent)
    return tl.where(pinned, PINNED, key).to(tl.uint32)


@triton.jit
def kept_count(budget, counts_ptr, b, num_valid):
    """How many positions of batch row b are kept."""
    if counts_ptr is not None:
        budget = tl.load(counts_ptr + b)
    return tl.minimum(budget, num_valid)


@triton.jit
def fill_slots(
    out_ptr, count, num_prompt, last, append_rows, appended_ptr, b, num_slots, BLOCK: tl.constexpr
):
    """Behind the ``count`` kept positions: the observation rows, then -1.

    With ``appended_ptr`` every batch row has a number of them of its own, behind its last key.
    """
    if appended_ptr is not None:
        append_rows = tl.load(appended_ptr + b)
        num_prompt = last
    for start in range(0, num_slots, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        value = tl.where(slot < count + append_rows, num_prompt + slot - count, -1)
        tl.store(out_ptr + slot, value, mask=(slot >= count) & (slot < num_slots))


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


@triton.jit(do_not_specialize=["kv_heads", "half"])
def pool_kernel(
    scores_ptr,  # [B, Hkv, N] float32
    out_ptr,  # [B, Hkv, N] int32: rank keys, pooled over 2 * half + 1
    leftpad_ptr,  # [B] int32 or None
    seqused_ptr,  # [B] int32 or None
    stride_b,
    stride_h,
    stride_n,
    kv_heads,
    num_prompt,
    half,
    BLOCK: tl.constexpr,
):
    """Pooled rank keys in memory, for rows that are read more than once."""
    unit, at = row_block(num_prompt, BLOCK)
    b = unit // kv_heads
    first, last = valid_keys(leftpad_ptr, seqused_ptr, b, num_prompt)
    row_ptr = scores_ptr + b * stride_b + (unit % kv_heads) * stride_h
    # In the padding, too: widen_kernel joins windows that are centred there.
    key = pooled_keys(row_ptr, stride_n, at, first, last, half).to(tl.int32, bitcast=True)
    tl.store(out_ptr + unit * num_prompt + at, key, mask=at < num_prompt)


@triton.jit(do_not_specialize=["shift"])
def widen_kernel(
    keys_ptr,  # [rows, N] int32 rank keys, pooled over 2 * r + 1
    out_ptr,  # [rows, N], pooled over 2 * (r + shift) + 1; shift <= r
    num_prompt,
    shift,
    BLOCK: tl.constexpr,
):
    """The maximum of two windows that overlap is that of a wider one."""
    unit, at = row_block(num_prompt, BLOCK)
    row_ptr = keys_ptr + unit * num_prompt
    inside = at < num_prompt
    # Clamped at the ends, where the window of the end itself is still inside the wide one.
    low = tl.load(row_ptr + tl.maximum(at - shift, 0), mask=inside, other=0)
    high = tl.load(row_ptr + tl.minimum(at + shift, num_prompt - 1), mask=inside, other=0)
    best = tl.maximum(low.to(tl.uint32, bitcast=True), high.to(tl.uint32, bitcast=True))
    tl.store(out_ptr + unit * num_prompt + at, best.to(tl.int32, bitcast=True), mask=inside)


@dataclass(frozen=True)
class Selection:
    """Options of one select call."""

    budget: int  # 0 is legal here: nothing is kept
    pool_kernel: int = 7
    num_sink: int = 0
    num_recent: int = 0
    append_rows: int = 0  # positions N .. N + append_rows - 1 are put behind the kept ones
    # Of each batch row instead, int32 [B], contiguous; budget and append_rows are their largest.
    counts: Tensor | None = None
    appended: Tensor | None = None


def pool(
    scores: Tensor,  # [B, Hkv, N] float32
    half: int,
    leftpad_k: Tensor | None,
    seqused_k: Tensor | None,
) -> Tensor:
    """Rank keys [B, Hkv, N] int32 pooled over half + 1 + half; any value in the padding."""
    batch, heads, length = scores.shape
    keys = torch.empty(scores.shape, dtype=torch.int32, device=scores.device)
    reach = min(half, heuristics.MAX_FUSED_POOL // 2)
    block = 1024
    grid = (batch * heads * heuristics.ceil_div(length, block),)
    launch(
        pool_kernel,
        grid,
        scores,
        scores_ptr=scores,
        out_ptr=keys,
        leftpad_ptr=leftpad_k,
        seqused_ptr=seqused_k,
        stride_b=scores.stride(0),
        stride_h=scores.stride(1),
        stride_n=scores.stride(2),
        kv_heads=heads,
        num_prompt=length,
        half=reach,
        BLOCK=block,
        num_warps=4,
    )
    while reach < half:
        shift = min(reach, half - reach)
        wider = torch.empty_like(keys)
        launch(
            widen_kernel,
            grid,
            scores,
            keys_ptr=keys,
            out_ptr=wider,
            num_prompt=length,
            shift=shift,
            BLOCK=block,
            num_warps=4,
        )
        keys, reach = wider, reach + shift
    return keys


def select(
    scores: Tensor,  # [B, Hkv, N] float32, any strides
    selection: Selection,
    leftpad_k: Tensor | None,  # [B] int32, contiguous
    seqused_k: Tensor | None,
    out: Tensor | None = None,  # [B, Hkv, slots] int32, contiguous
) -> Tensor:
    """Kept positions, ascending, int32 [B, Hkv, min(budget, N) + append_rows]; -1 at the end."""
    from .select_long import select_long

    batch, heads, length = scores.shape
    budget = min(selection.budget, length)
    if out is None:
        slots = budget + selection.append_rows
        out = torch.empty((batch, heads, slots), dtype=torch.int32, device=scores.device)
    indices, num_slots = out, out.shape[2]
    half = min(selection.pool_kernel // 2, length)
    long = length > heuristics.MAX_ROW_IN_REGISTERS
    pooled = (
        length > heuristics.MAX_ROW_POOLED_IN_REGISTERS or half > heuristics.MAX_FUSED_POOL // 2
    )
    if pooled:
        scores = pool(scores, half, leftpad_k, seqused_k)
    arguments = {
        "out_ptr": indices,
        "leftpad_ptr": leftpad_k,
        "seqused_ptr": seqused_k,
        "counts_ptr": selection.counts,
        "appended_ptr": selection.appended,
        "kv_heads": heads,
        "num_prompt": length,
        "budget": budget,
        "num_sink": min(selection.num_sink, length),
        "num_recent": min(selection.num_recent, length),
        "append_rows": selection.append_rows,
        "num_slots": num_slots,
    }
    if long:
        select_long(scores, arguments)
        return indices
    block = max(16, heuristics.next_power_of_two(length))
    launch(
        select_row_kernel,
        (batch * heads,),
        scores,
        scores_ptr=scores,
        stride_b=scores.stride(0),
        stride_h=scores.stride(1),
        stride_n=scores.stride(2),
        half=half,
        POOLED=pooled,
        BLOCK=block,
        CHUNK=min(block, heuristics.SELECT_CHUNK),
        num_warps=heuristics.select_warps(length, target_for(scores)),
        **arguments,
    )
    return indices
