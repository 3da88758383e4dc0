"""Room 1 over a paged cache: the log-sum-exp of every request's rows.

The kernel is that of attention.py without padding, TMA tiles and values, which a paged cache does
not need. The block table says where the keys are; quantised keys are converted to the query's dtype
as they are loaded, and their scales multiply the logits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import splits
from .attention import combine, online_softmax
from .launch import launch, target_for
from .problem import PagedProblem
from .splits import ceil_div
from .tiles import load_paged_keys, load_queries, program_of


@triton.jit
def share_of(split, num_splits, num_keys, BLOCK_KEYS: tl.constexpr):
    """Key tiles [begin, end) of one split, of a request's own number of keys."""
    tiles = tl.cdiv(num_keys, BLOCK_KEYS)
    per_split = tl.cdiv(tiles, num_splits)
    return split * per_split, tl.minimum((split + 1) * per_split, tiles)


@triton.jit(
    do_not_specialize=[
        "kv_heads",
        "group",
        "num_rows",
        "page_size",
        "max_blocks",
        "num_blocks",
        "num_splits",
    ]
)
def paged_lse_kernel(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [num_blocks, page_size, Hkv, D]; bytes if QUANTISED
    k_scale_ptr,  # float32, or None
    table_ptr,  # [R, max_blocks] int32, contiguous
    first_rows_ptr,  # [R] int32, as the next two: see paged_plan.Plan
    rows_ptr,
    prompts_ptr,
    out_lse_parts_ptr,  # [R * Hkv, num_splits, G * num_rows] float32, base 2
    stride_qt,
    stride_qh,
    stride_block,
    stride_slot,
    stride_kh,
    stride_scale_block,
    stride_scale_slot,
    stride_scale_h,
    kv_heads,
    group,
    num_rows,
    page_size,
    max_blocks,
    num_blocks,
    scale_log2,
    num_splits,
    QUANTISED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One (KV head of a request, split of its keys, row tile)."""
    folded = group * num_rows
    row_tiles = tl.cdiv(folded, BLOCK_ROWS)
    row_tile, split, unit, r, h = program_of(row_tiles, num_splits, kv_heads)
    rows = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    own_rows = tl.load(rows_ptr + r)
    prompt = tl.load(prompts_ptr + r)
    first_row = tl.load(first_rows_ptr + r).to(tl.int64)

    there = (rows < folded) & (rows % num_rows < own_rows)
    q_head = q_ptr + first_row * stride_qt + h * group * stride_qh
    query = load_queries(q_head, rows, num_rows, there, stride_qh, stride_qt, D, BLOCK_DIM)
    limit = prompt + tl.where(there, rows % num_rows, 0)
    scale_head = None
    if k_scale_ptr is not None:
        scale_head = k_scale_ptr + h * stride_scale_h
    k_head = k_ptr + h * stride_kh

    peak = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    num_keys = tl.where(own_rows > 0, prompt + own_rows, 0)
    begin, end = share_of(split, num_splits, num_keys, BLOCK_KEYS)
    for tile in range(begin, end):
        j = tile * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
        key, key_scale = load_paged_keys(
            k_head, scale_head, table_ptr + r * max_blocks, tile * BLOCK_KEYS, j < num_keys,
            page_size, max_blocks, num_blocks, stride_block, stride_slot,
            stride_scale_block, stride_scale_slot,
            QUANTISED, query.dtype, D, BLOCK_KEYS, BLOCK_DIM,
        )  # fmt: skip
        logits = tl.dot(query, key.T, input_precision=PRECISION) * scale_log2
        if QUANTISED != "":
            logits *= key_scale[None, :]
        logits = tl.where(j[None, :] <= limit[:, None], logits, float("-inf"))
        _, _, peak, total = online_softmax(logits, peak, total, True)
    part = (unit * num_splits + split) * folded
    tl.store(out_lse_parts_ptr + part + rows, peak + tl.log2(total), mask=rows < folded)


def paged_lse(problem: PagedProblem, max_seq_len: int) -> Tensor:
    """Natural log-sum-exp [R, Hq, num_rows]; undefined for rows that do not exist."""
    p, query = problem, problem.query
    target, size = target_for(query), query.element_size()
    keys = max_seq_len + p.num_rows
    sweep = splits.attention(p.units, p.folded, keys, p.head_dim, size, target, False)
    sweep = splits.paged_splits(sweep, keys)
    lse_parts = query.new_empty((p.units, sweep.num_splits, p.folded), dtype=torch.float32)
    launch(
        paged_lse_kernel,
        (p.units * sweep.num_splits * ceil_div(p.folded, sweep.block_rows),),
        query,
        out_lse_parts_ptr=lse_parts,
        num_splits=sweep.num_splits,
        **p.arguments(),
        **sweep.arguments(target.precision(size)),
    )
    lse = query.new_empty((p.units, p.folded), dtype=torch.float32)
    combine(None, lse_parts, None, lse, p.head_dim)
    return lse.view(p.block_table.shape[0], query.shape[1], p.num_rows)
