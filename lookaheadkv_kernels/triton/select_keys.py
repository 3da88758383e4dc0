"""What every form of select is made of: rank keys, the pool, counts, and what fills the last slots.

Scores become unsigned rank keys (a larger key is a better score, NaN the lowest), so that the pool
and the Top-K are integer work and every bit counts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import splits
from .launch import launch
from .problem import strides
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

    With ``appended_ptr`` the number of these differs per batch row, and they follow its last key.
    """
    if appended_ptr is not None:
        append_rows = tl.load(appended_ptr + b)
        num_prompt = last
    for start in range(0, num_slots, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        value = tl.where(slot < count + append_rows, num_prompt + slot - count, -1)
        tl.store(out_ptr + slot, value, mask=(slot >= count) & (slot < num_slots))


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


def pool(
    scores: Tensor,  # [B, Hkv, N] float32
    half: int,
    leftpad_k: Tensor | None,
    seqused_k: Tensor | None,
) -> Tensor:
    """Rank keys [B, Hkv, N] int32 pooled over half + 1 + half; any value in the padding."""
    batch, heads, length = scores.shape
    keys = torch.empty(scores.shape, dtype=torch.int32, device=scores.device)
    reach = min(half, splits.MAX_FUSED_POOL // 2)
    block = 1024
    grid = (batch * heads * splits.ceil_div(length, block),)
    launch(
        pool_kernel,
        grid,
        scores,
        scores_ptr=scores,
        out_ptr=keys,
        leftpad_ptr=leftpad_k,
        seqused_ptr=seqused_k,
        **strides("", scores, "bhn"),
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
