"""Device functions that the kernels share: programs, folded rows, valid keys, key tiles, sums."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .launch import launch
from .splits import Target, ceil_div

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def valid_keys(leftpad_ptr, seqused_ptr, b, num_prompt):
    """Half-open range of the valid prompt keys of batch row b, clamped to what there is."""
    first = 0
    last = num_prompt
    if seqused_ptr is not None:
        last = tl.minimum(tl.maximum(tl.load(seqused_ptr + b), 0), num_prompt)
    if leftpad_ptr is not None:
        first = tl.minimum(tl.maximum(tl.load(leftpad_ptr + b), 0), last)
    return first, last


@triton.jit
def program_of(num_tiles, num_splits, kv_heads):
    """(tile, split, unit, batch row, KV head) of this program.

    A unit is a KV head of a batch row, or of a request. Tiles of the same split are neighbours.
    """
    pid = tl.program_id(0)
    unit = (pid // num_tiles // num_splits).to(tl.int64)
    return pid % num_tiles, pid // num_tiles % num_splits, unit, unit // kv_heads, unit % kv_heads


@triton.jit
def row_block(length, BLOCK: tl.constexpr):
    """(row, positions) of this program, where BLOCK positions of a row are a program's.

    On one axis of the grid: the others end at 65,535.
    """
    blocks = tl.cdiv(length, BLOCK)
    pid = tl.program_id(0)
    return (pid // blocks).to(tl.int64), pid % blocks * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def row_offsets(rows, period, stride_h, stride_s):
    """Element offsets of folded rows: row r is query r % period of the group's head r // period."""
    head = (rows // period).to(tl.int64)
    return head * stride_h + (rows % period).to(tl.int64) * stride_s


@triton.jit
def load_matrix(ptr, offsets, keep, D: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """[len(offsets), BLOCK_DIM] rows at element offsets; zeros where not ``keep``."""
    d = tl.arange(0, BLOCK_DIM)
    mask = keep[:, None]
    if D != BLOCK_DIM:
        mask = mask & (d < D)[None, :]
    return tl.load(ptr + offsets[:, None] + d[None, :], mask=mask, other=0.0)


@triton.jit
def load_queries(
    ptr, rows, period, keep, stride_h, stride_s, D: tl.constexpr, BLOCK_DIM: tl.constexpr
):
    """[len(rows), BLOCK_DIM] folded rows, as row_offsets counts them; zeros where not ``keep``."""
    return load_matrix(ptr, row_offsets(rows, period, stride_h, stride_s), keep, D, BLOCK_DIM)


@triton.jit
def load_keys(
    ptr,  # of one head
    desc,
    b,
    h,
    start,
    stride_s,
    keep,  # ignored where a descriptor is given
    D: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """Keys (or values) start .. start + BLOCK_KEYS - 1 of one head: [BLOCK_KEYS, BLOCK_DIM]."""
    if desc is not None:
        return desc.load([b, h, start, 0]).reshape(BLOCK_KEYS, BLOCK_DIM)
    offsets = (start + tl.arange(0, BLOCK_KEYS)).to(tl.int64) * stride_s
    return load_matrix(ptr, offsets, keep, D, BLOCK_DIM)


@triton.jit
def page_of(table_ptr, position, keep, page_size, max_blocks, num_blocks):
    """(block, slot) of positions of one request; block ids out of range are clamped."""
    page = tl.minimum(position // page_size, max_blocks - 1)
    block = tl.load(table_ptr + page, mask=keep, other=0)
    block = tl.minimum(tl.maximum(block, 0), num_blocks - 1)
    return block.to(tl.int64), (position % page_size).to(tl.int64)


@triton.jit
def number_of(stored, QUANTISED: tl.constexpr, dtype: tl.constexpr):
    """What is stored, as the query's dtype: exact, as no quantised type has more bits.

    Bytes are taken apart by hand, since not every chip's compiler knows both float8 types.
    """
    if QUANTISED == "int8":
        return stored.to(tl.int8, bitcast=True).to(tl.float32).to(dtype)
    bits = stored.to(tl.uint16)
    if QUANTISED == "float8_e5m2":
        return (bits << 8).to(tl.float16, bitcast=True).to(dtype)
    # The exponent of e4m3 is a part of float16's, 8 too low.
    half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
    number = half.to(tl.float32) * 256.0
    return tl.where((bits & 0x7F) == 0x7F, float("nan"), number).to(dtype)


@triton.jit
def load_paged_keys(
    ptr,  # of one head
    scale_ptr,  # of one head, or None
    table_ptr,  # of one request
    start,
    keep,
    page_size,
    max_blocks,
    num_blocks,
    stride_block,
    stride_slot,
    stride_scale_block,
    stride_scale_slot,
    QUANTISED: tl.constexpr,  # "", or the name of the stored dtype
    dtype: tl.constexpr,
    D: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """(keys, what their logits are to be multiplied by) of positions start .. of one request."""
    position = start + tl.arange(0, BLOCK_KEYS)
    block, slot = page_of(table_ptr, position, keep, page_size, max_blocks, num_blocks)
    stored = load_matrix(ptr, block * stride_block + slot * stride_slot, keep, D, BLOCK_DIM)
    scale = tl.full([BLOCK_KEYS], 1.0, tl.float32)
    if QUANTISED != "":
        stored = number_of(stored, QUANTISED, dtype)
        if scale_ptr is not None:
            at = block * stride_scale_block + slot * stride_scale_slot
            scale = tl.load(scale_ptr + at, mask=keep, other=1.0)
    return stored, scale


@triton.jit(do_not_specialize=["num_splits"])
def sum_splits_kernel(
    parts_ptr,  # [units, num_splits, size] float32
    out_ptr,  # [units, size]
    num_splits,
    size,
    weight,
    BLOCK: tl.constexpr,
):
    """Weighted sum over the splits, in their order."""
    unit, at = row_block(size, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for split in range(num_splits):
        total += tl.load(parts_ptr + (unit * num_splits + split) * size + at, mask=at < size)
    tl.store(out_ptr + unit * size + at, total * weight, mask=at < size)


def descriptor(tensor: Tensor, block_keys: int, block_dim: int, target: Target) -> Any:
    """A TMA descriptor of a [B, H, S, D] tensor, or None where the copy engine cannot read it."""
    if not target.has_tma or tensor.numel() == 0:
        return None
    size = tensor.element_size()
    # The copy engine misreads the stride 0 of an expanded dimension.
    aligned = all(stride > 0 and stride * size % 16 == 0 for stride in tensor.stride()[:3])
    if not aligned or tensor.data_ptr() % 16 != 0:
        return None
    return TensorDescriptor(
        tensor, list(tensor.shape), list(tensor.stride()), [1, 1, block_keys, block_dim]
    )


def sum_splits(parts: Tensor, out: Tensor, units: int, size: int, weight: float) -> None:
    """out [units, size] = weight * sum over the splits of parts [units, num_splits, size]."""
    block = 1024
    launch(
        sum_splits_kernel,
        (units * ceil_div(size, block),),
        parts,
        parts_ptr=parts,
        out_ptr=out,
        num_splits=parts.shape[1],
        size=size,
        weight=weight,
        BLOCK=block,
        num_warps=4,
    )
