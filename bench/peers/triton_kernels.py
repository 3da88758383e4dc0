"""The GPU halves of `row_parallel.py` and `column_parallel.py`, in their sources' manner.

Head dimensions are powers of two, as in the benchmarked models.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_parallel_kernel(  # type: ignore[no-untyped-def]
    q_ptr,  # [B, Hq, L, D]
    k_ptr,  # [B, Hkv, N + L, D]
    out_sums_ptr,  # [B, Hq, N] float32, zeros
    stride_qb,
    stride_qh,
    stride_qs,
    stride_kb,
    stride_kh,
    stride_ks,
    heads,
    group,
    num_rows,
    num_prompt,
    scale,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """One block of rows of one query head: two sweeps over the keys."""
    b = tl.program_id(1) // heads
    h = tl.program_id(1) % heads
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    dims = tl.arange(0, D)
    keys = tl.arange(0, BLOCK_KEYS)
    query = tl.load(
        q_ptr + b * stride_qb + h * stride_qh + rows[:, None] * stride_qs + dims[None, :],
        mask=rows[:, None] < num_rows,
        other=0.0,
    )
    k_head = k_ptr + b * stride_kb + (h // group) * stride_kh
    highest = tl.full((BLOCK_ROWS,), -1.0e30, tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    length = num_prompt + num_rows
    for start in range(0, length, BLOCK_KEYS):
        at = start + keys
        key = tl.load(
            k_head + at[:, None] * stride_ks + dims[None, :], mask=at[:, None] < length, other=0.0
        )
        logits = tl.dot(query, key.T) * scale
        seen = at[None, :] <= num_prompt + rows[:, None]
        logits = tl.where(seen, logits, -1.0e30)
        new = tl.maximum(highest, tl.max(logits, 1))
        total = total * tl.exp(highest - new) + tl.sum(tl.exp(logits - new[:, None]), 1)
        highest = new
    lse = highest + tl.log(total)
    out = out_sums_ptr + tl.program_id(1).to(tl.int64) * num_prompt
    for start in range(0, num_prompt, BLOCK_KEYS):
        at = start + keys
        key = tl.load(
            k_head + at[:, None] * stride_ks + dims[None, :], mask=at[:, None] < length, other=0.0
        )
        chance = tl.exp(tl.dot(query, key.T) * scale - lse[:, None])
        chance = tl.where(rows[:, None] < num_rows, chance, 0.0)
        tl.atomic_add(out + at, tl.sum(chance, 0), mask=at < num_prompt)


@triton.jit
def column_parallel_kernel(  # type: ignore[no-untyped-def]
    q_ptr,  # [B, Hkv, G * L, D] contiguous
    k_ptr,  # [B, Hkv, N, D]
    lse_ptr,  # [B, Hkv, G * L] float32, contiguous
    out_sums_ptr,  # [B, Hkv, N] float32
    stride_kb,
    stride_kh,
    stride_ks,
    kv_heads,
    num_rows,
    num_keys,
    scale,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """One block of keys of one KV head: one loop over all rows."""
    unit = tl.program_id(1).to(tl.int64)
    b = unit // kv_heads
    h = unit % kv_heads
    at = tl.program_id(0) * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    dims = tl.arange(0, D)
    key = tl.load(
        k_ptr + b * stride_kb + h * stride_kh + at[:, None] * stride_ks + dims[None, :],
        mask=at[:, None] < num_keys,
        other=0.0,
    )
    total = tl.zeros((BLOCK_KEYS,), tl.float32)
    for start in range(0, num_rows, BLOCK_ROWS):
        rows = start + tl.arange(0, BLOCK_ROWS)
        query = tl.load(
            q_ptr + (unit * num_rows + rows[:, None]) * D + dims[None, :],
            mask=rows[:, None] < num_rows,
            other=0.0,
        )
        lse = tl.load(lse_ptr + unit * num_rows + rows, mask=rows < num_rows, other=float("inf"))
        total += tl.sum(tl.exp(tl.dot(key, query.T) * scale - lse[None, :]), 1)
    tl.store(out_sums_ptr + unit * num_keys + at, total, mask=at < num_keys)
