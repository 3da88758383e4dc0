"""Room 4 over a paged cache: the kept entries of every layer and head move, in place.

docs/paged.md argues why no entry is overwritten before it is read. Here one program moves one head
of one request in one tensor, and reads a chunk as a whole before it writes any of it, with a
barrier between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import splits
from .launch import launch
from .tiles import page_of

NUMBERS = tl.constexpr(32)  # written by one launch of store_numbers_kernel
WORDS = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}


@triton.jit(do_not_specialize=["count", *(f"a{i}" for i in range(NUMBERS.value))])
def store_numbers_kernel(
    out_ptr,  # [count] int64
    count,
    a0: tl.int64, a1: tl.int64, a2: tl.int64, a3: tl.int64, a4: tl.int64, a5: tl.int64,
    a6: tl.int64, a7: tl.int64, a8: tl.int64, a9: tl.int64, a10: tl.int64, a11: tl.int64,
    a12: tl.int64, a13: tl.int64, a14: tl.int64, a15: tl.int64, a16: tl.int64, a17: tl.int64,
    a18: tl.int64, a19: tl.int64, a20: tl.int64, a21: tl.int64, a22: tl.int64, a23: tl.int64,
    a24: tl.int64, a25: tl.int64, a26: tl.int64, a27: tl.int64, a28: tl.int64, a29: tl.int64,
    a30: tl.int64, a31: tl.int64,
):  # fmt: skip
    """Writes host integers to device memory by passing them as kernel arguments.

    So there is no copy and no synchronisation, and CUDA graphs capture them.
    """
    at = tl.arange(0, NUMBERS)
    value = tl.zeros([NUMBERS], tl.int64)
    given = (
        a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15, a16, a17, a18, a19,
        a20, a21, a22, a23, a24, a25, a26, a27, a28, a29, a30, a31,
    )  # fmt: skip
    for i in tl.static_range(NUMBERS):
        value = tl.where(at == i, given[i].to(tl.int64), value)
    tl.store(out_ptr + at, value, mask=at < count)


@triton.jit
def copy_chunk(
    base,  # of one head
    indices_ptr,
    src_table_ptr,
    dst_table_ptr,
    begin,
    end,
    start,
    page_size,
    max_src_blocks,
    max_dst_blocks,
    num_blocks,
    stride_block,
    stride_slot,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Entries begin .. end - 1, at most BLOCK: all read, then all written."""
    entry = begin + tl.arange(0, BLOCK)
    inside = entry < end
    source = tl.load(indices_ptr + entry, mask=inside, other=0)
    to = start + entry
    # What the tables do not reach is left alone: a GPU cannot report it.
    inside = inside & (source < max_src_blocks * page_size)
    inside = inside & (to >= 0) & (to < max_dst_blocks * page_size)
    word = tl.arange(0, BLOCK_WIDTH)
    mask = inside[:, None] & (word < WIDTH)[None, :]
    block, slot = page_of(src_table_ptr, source, inside, page_size, max_src_blocks, num_blocks)
    from_row = base + block * stride_block + slot * stride_slot
    words = tl.load(from_row[:, None] + word[None, :], mask=mask, other=0)
    block, slot = page_of(dst_table_ptr, to, inside, page_size, max_dst_blocks, num_blocks)
    to_row = base + block * stride_block + slot * stride_slot
    tl.debug_barrier()
    tl.store(to_row[:, None] + word[None, :], words, mask=mask)
    tl.debug_barrier()


@triton.jit(
    do_not_specialize=[
        "num_caches",
        "num_requests",
        "kv_heads",
        "index_heads",
        "num_slots",
        "page_size",
        "max_src_blocks",
        "max_dst_blocks",
        "num_blocks",
    ]
)
def compact_kv_cache_kernel(
    places_ptr,  # [2, caches] int64: the address and the layer of each
    indices_ptr,  # [layers, R, Hkv or 1, K] int32, contiguous
    kept_lens_ptr,  # [layers, R] int32, contiguous
    dst_start_ptr,  # [layers, R] int32, contiguous, or None
    src_table_ptr,  # [R, max_src_blocks] int32, contiguous
    dst_table_ptr,  # [R, max_dst_blocks] int32, contiguous
    stride_block,
    stride_slot,
    stride_h,
    num_caches,
    num_requests,
    kv_heads,
    index_heads,
    num_slots,
    page_size,
    max_src_blocks,
    max_dst_blocks,
    num_blocks,
    WORD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """One head of one request in one tensor."""
    pid = tl.program_id(0)
    h = (pid % kv_heads).to(tl.int64)
    r = (pid // kv_heads % num_requests).to(tl.int64)
    cache = pid // kv_heads // num_requests
    row = tl.load(places_ptr + num_caches + cache) * num_requests + r
    base = tl.load(places_ptr + cache).to(tl.pointer_type(WORD)) + h * stride_h
    head_indices = indices_ptr + (row * index_heads + h % index_heads) * num_slots
    start = 0
    if dst_start_ptr is not None:
        start = tl.load(dst_start_ptr + row)
    count = tl.minimum(tl.load(kept_lens_ptr + row), num_slots)

    # Entries that are there end the count; those that move up are the first `up`.
    up = 0
    there = 0
    for begin in range(0, count, BLOCK):
        entry = begin + tl.arange(0, BLOCK)
        source = tl.load(head_indices + entry, mask=entry < count, other=-1)
        there += tl.sum((source >= 0).to(tl.int32), 0)
        up += tl.sum(((source >= 0) & (source < start + entry)).to(tl.int32), 0)
    src_row = src_table_ptr + r * max_src_blocks
    dst_row = dst_table_ptr + r * max_dst_blocks
    for i in range(tl.cdiv(up, BLOCK)):
        begin = (tl.cdiv(up, BLOCK) - 1 - i) * BLOCK
        copy_chunk(
            base, head_indices, src_row, dst_row, begin, up, start, page_size,
            max_src_blocks, max_dst_blocks, num_blocks, stride_block, stride_slot,
            WIDTH, BLOCK, BLOCK_WIDTH,
        )  # fmt: skip
    for begin in range(up, there, BLOCK):
        copy_chunk(
            base, head_indices, src_row, dst_row, begin, there, start, page_size,
            max_src_blocks, max_dst_blocks, num_blocks, stride_block, stride_slot,
            WIDTH, BLOCK, BLOCK_WIDTH,
        )  # fmt: skip


@dataclass(frozen=True)
class Words:
    """How a cache's entries are cut into words: caches whose words are equal share a launch."""

    size: int  # bytes of a word
    width: int  # words of an entry
    stride_block: int  # in words
    stride_slot: int
    stride_h: int


def words_of(cache: Tensor) -> Words:
    """The widest words that the entries of a cache divide into."""
    size = cache.element_size()
    entry = size * (cache.shape[3] if cache.dim() == 4 else 1)
    # A dimension of one element has any stride.
    steps = [
        step * size if n > 1 else 0
        for n, step in zip(cache.shape[:3], cache.stride()[:3], strict=True)
    ]
    numbers = (entry, cache.data_ptr(), *steps)
    word = next(width for width in (8, 4, 2, 1) if all(x % width == 0 for x in numbers))
    return Words(word, entry // word, *(step // word for step in steps))


def store_numbers(numbers: Sequence[int], device: torch.device) -> Tensor:
    """int64 [len(numbers)] on the device, without a copy from the host."""
    out = torch.empty(len(numbers), dtype=torch.int64, device=device)
    step = NUMBERS.value
    for begin in range(0, len(numbers), step):
        part = list(numbers[begin : begin + step])
        padded = part + [0] * (step - len(part))
        launch(
            store_numbers_kernel,
            (1,),
            out,
            out_ptr=out[begin:],
            count=len(part),
            num_warps=1,
            **{f"a{i}": number for i, number in enumerate(padded)},
        )
    return out


def compact_kv_cache(
    caches: Sequence[Tensor],  # num_layers * P, each [num_blocks, page_size, Hkv, *]
    indices: Tensor,  # [num_layers, R, Hkv or 1, K] int32, contiguous
    kept_lens: Tensor,  # [num_layers, R] int32, contiguous
    src_block_table: Tensor,  # [R, max_blocks] int32, contiguous
    dst_block_table: Tensor,  # [R, max_dst_blocks] int32, contiguous
    dst_start: Tensor | None,  # [num_layers, R] int32, contiguous
) -> None:
    """One launch for all caches that are laid out alike, and one for every sixteen caches."""
    num_layers, num_requests, index_heads, num_slots = indices.shape
    parts = len(caches) // num_layers
    groups: dict[Words, list[int]] = {}
    for at, cache in enumerate(caches):
        groups.setdefault(words_of(cache), []).append(at)
    num_blocks, page_size, kv_heads = caches[0].shape[:3]
    if num_requests * num_slots * num_blocks == 0:
        return
    for words, members in groups.items():
        if words.width == 0:
            continue
        width = splits.next_power_of_two(words.width)
        block = max(16, min(256, 2048 // width))
        places = [caches[at].data_ptr() for at in members] + [at // parts for at in members]
        launch(
            compact_kv_cache_kernel,
            (len(members) * num_requests * kv_heads,),
            indices,
            places_ptr=store_numbers(places, indices.device),
            indices_ptr=indices,
            kept_lens_ptr=kept_lens,
            dst_start_ptr=dst_start,
            src_table_ptr=src_block_table,
            dst_table_ptr=dst_block_table,
            stride_block=words.stride_block,
            stride_slot=words.stride_slot,
            stride_h=words.stride_h,
            num_caches=len(members),
            num_requests=num_requests,
            kv_heads=kv_heads,
            index_heads=index_heads,
            num_slots=num_slots,
            page_size=page_size,
            max_src_blocks=src_block_table.shape[1],
            max_dst_blocks=dst_block_table.shape[1],
            num_blocks=num_blocks,
            WORD=WORDS[words.size],
            WIDTH=words.width,
            BLOCK=block,
            BLOCK_WIDTH=width,
            num_warps=4,
            num_stages=1,  # nothing may be read ahead of what is written
        )
