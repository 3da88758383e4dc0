"""Exact Top-K of long rows: a radix select whose chunks are shared by many programs.

Four digits of eight bits, from the highest: each chunk writes the histogram of its keys that share
the digits found so far, and every program of the next launch sums them in order, so nothing is
atomic and nothing waits. The last launch knows from the same histograms how many entries the chunks
before it keep, and writes its own behind them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import splits
from .launch import launch
from .select_keys import fill_slots, kept_count, load_keys_of_row
from .tiles import valid_keys

DIGITS = tl.constexpr(4)
BINS = tl.constexpr(256)


@triton.jit
def find_digit(histograms_ptr, num_chunks, wanted):
    """(digit of the wanted-th largest key, keys wanted among those with that digit).

    ``histograms_ptr`` [num_chunks, BINS] counts the keys that share all higher digits.
    """
    digit = tl.arange(0, BINS)
    counts = tl.zeros([BINS], tl.int32)
    for chunk in range(num_chunks):
        counts += tl.load(histograms_ptr + chunk * BINS + digit)
    at_least = tl.cumsum(counts, 0, reverse=True)
    found = tl.max(tl.where(at_least >= wanted, digit, 0), 0)
    return found, wanted - tl.sum(tl.where(digit > found, counts, 0), 0)


@triton.jit
def threshold_of(histograms_ptr, unit_chunks, num_chunks, count, PASSES: tl.constexpr):
    """(highest PASSES digits of the count-th largest key, keys wanted among those that share them).

    ``histograms_ptr`` [DIGITS, rows * num_chunks, BINS], of one row's first chunk.
    """
    prefix = tl.zeros([1], tl.uint32)
    wanted = count
    for i in tl.static_range(PASSES):
        part_ptr = histograms_ptr + (i * unit_chunks).to(tl.int64) * BINS
        digit, wanted = find_digit(part_ptr, num_chunks, wanted)
        prefix = (prefix << 8) | digit.to(tl.uint32)
    return prefix, wanted


@triton.jit(do_not_specialize=["kv_heads", "budget", "num_sink", "num_recent", "num_chunks"])
def digit_histogram_kernel(
    keys_ptr,  # [B, Hkv, N] int32: pooled rank keys
    out_histograms_ptr,  # [DIGITS, B * Hkv * num_chunks, BINS] int32; slices < PASS are read
    leftpad_ptr,  # [B] int32 or None
    seqused_ptr,  # [B] int32 or None
    counts_ptr,  # [B] int32, instead of budget, or None
    kv_heads,
    num_prompt,
    budget,
    num_sink,
    num_recent,
    num_chunks,
    PASS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One chunk of one row: counts of digit PASS among the keys that share the higher ones."""
    unit = tl.program_id(0).to(tl.int64)
    units = tl.num_programs(0)
    chunk = tl.program_id(1)
    first, last = valid_keys(leftpad_ptr, seqused_ptr, unit // kv_heads, num_prompt)
    count = kept_count(budget, counts_ptr, unit // kv_heads, last - first)
    row_histograms = out_histograms_ptr + unit * num_chunks * BINS
    at = chunk * BLOCK + tl.arange(0, BLOCK)
    key = load_keys_of_row(
        keys_ptr + unit * num_prompt, 1, at, first, last, 0, num_sink, num_recent, True
    )
    counted = (at >= first) & (at < last)
    if PASS > 0:
        prefix, _ = threshold_of(row_histograms, units * num_chunks, num_chunks, count, PASS)
        counted = counted & ((key >> (32 - 8 * PASS)) == prefix)
    digit = ((key >> (24 - 8 * PASS)) & 0xFF).to(tl.int32)
    histogram = tl.histogram(digit, BINS, mask=counted)
    slot = (PASS * units + unit) * num_chunks + chunk
    tl.store(out_histograms_ptr + slot.to(tl.int64) * BINS + tl.arange(0, BINS), histogram)


@triton.jit(
    do_not_specialize=[
        "kv_heads",
        "budget",
        "num_sink",
        "num_recent",
        "append_rows",
        "num_slots",
        "num_chunks",
    ]
)
def write_kept_kernel(
    keys_ptr,  # [B, Hkv, N] int32: pooled rank keys
    histograms_ptr,  # [DIGITS, B * Hkv * num_chunks, BINS] int32
    out_ptr,  # [B, Hkv, num_slots] int32
    leftpad_ptr,  # [B] int32 or None
    seqused_ptr,  # [B] int32 or None
    counts_ptr,  # [B] int32, instead of budget, or None
    appended_ptr,  # [B] int32, instead of append_rows, or None
    kv_heads,
    num_prompt,
    budget,
    num_sink,
    num_recent,
    append_rows,
    num_slots,
    num_chunks,
    BLOCK: tl.constexpr,
):
    """One chunk of one row: its kept positions, behind those of the chunks before it."""
    unit = tl.program_id(0).to(tl.int64)
    units = tl.num_programs(0)
    chunk = tl.program_id(1)
    first, last = valid_keys(leftpad_ptr, seqused_ptr, unit // kv_heads, num_prompt)
    count = kept_count(budget, counts_ptr, unit // kv_heads, last - first)
    row_histograms = histograms_ptr + unit * num_chunks * BINS
    threshold, wanted = threshold_of(row_histograms, units * num_chunks, num_chunks, count, DIGITS)

    # What the chunks before keep: keys above the threshold by their first other digit, and ties.
    digit = tl.arange(0, BINS)
    above_before = 0
    equal_before = 0
    for i in tl.static_range(DIGITS):
        mine = ((threshold >> (24 - 8 * i)) & 0xFF).to(tl.int32)
        before = tl.zeros([BINS], tl.int32)
        for other in range(chunk):
            before += tl.load(
                row_histograms + (i * units * num_chunks + other).to(tl.int64) * BINS + digit
            )
        above_before += tl.sum(tl.where(digit > mine, before, 0), 0)
        if i == DIGITS - 1:
            equal_before = tl.sum(tl.where(digit == mine, before, 0), 0)

    at = chunk * BLOCK + tl.arange(0, BLOCK)
    key = load_keys_of_row(
        keys_ptr + unit * num_prompt, 1, at, first, last, 0, num_sink, num_recent, True
    )
    valid = (at >= first) & (at < last)
    equal = valid & (key == threshold)
    rank = equal_before + tl.cumsum(equal.to(tl.int32), 0)
    kept = ((valid & (key > threshold)) | (equal & (rank <= wanted))).to(tl.int32)
    slot = above_before + tl.minimum(equal_before, wanted) + tl.cumsum(kept, 0) - kept
    out_row = out_ptr + unit * num_slots
    tl.store(out_row + slot, at, mask=kept != 0)
    if chunk == 0:
        fill_slots(
            out_row, count, num_prompt, last, append_rows, appended_ptr, unit // kv_heads,
            num_slots, BLOCK,
        )  # fmt: skip


def select_long(
    keys: Tensor,  # [B, Hkv, N] int32: pooled rank keys
    arguments: dict[str, Any],  # those that both forms of select take
) -> None:
    """Write the kept positions of every row."""
    batch, heads, length = keys.shape
    block = splits.HISTOGRAM_CHUNK
    chunks = splits.ceil_div(length, block)
    rows = batch * heads
    histograms = torch.empty((4, rows * chunks, 256), dtype=torch.int32, device=keys.device)
    for digit in range(4):
        launch(
            digit_histogram_kernel,
            (rows, chunks),
            keys,
            keys_ptr=keys,
            out_histograms_ptr=histograms,
            num_chunks=chunks,
            PASS=digit,
            BLOCK=block,
            num_warps=8,
            **{
                name: value
                for name, value in arguments.items()
                if name not in ("out_ptr", "appended_ptr", "append_rows", "num_slots")
            },
        )
    launch(
        write_kept_kernel,
        (rows, chunks),
        keys,
        keys_ptr=keys,
        histograms_ptr=histograms,
        num_chunks=chunks,
        BLOCK=block,
        num_warps=8,
        **arguments,
    )
