"""Room 2 over a paged cache: the column scores of every request.

The kernel is that of scores.py without padding; keys are found and loaded as in paged_attention.py.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import splits
from .launch import launch, target_for
from .paged_attention import paged_lse, share_of
from .problem import PagedProblem
from .scores import column_sums
from .tiles import LOG2_E, load_paged_keys, load_queries, program_of, row_offsets


@triton.jit
def load_rows(
    q_head,
    lse_head,
    rows,
    folded,
    num_rows,
    own_rows,
    stride_qh,
    stride_qt,
    stride_lse_h,
    stride_lse_t,
    D: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """(queries, base-2 log-sum-exp) of folded rows of a request; infinity, which makes their share
    zero, for those that do not exist.
    """
    there = (rows < folded) & (rows % num_rows < own_rows)
    query = load_queries(q_head, rows, num_rows, there, stride_qh, stride_qt, D, BLOCK_DIM)
    lse_offsets = row_offsets(rows, num_rows, stride_lse_h, stride_lse_t)
    lse = tl.load(lse_head + lse_offsets, mask=there, other=float("inf"))
    return query, lse * LOG2_E


@triton.jit(
    do_not_specialize=[
        "kv_heads",
        "group",
        "num_rows",
        "page_size",
        "max_blocks",
        "num_blocks",
        "max_seq_len",
        "num_splits",
    ]
)
def paged_column_scores_kernel(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [num_blocks, page_size, Hkv, D]; bytes if QUANTISED
    k_scale_ptr,  # float32, or None
    table_ptr,  # [R, max_blocks] int32, contiguous
    first_rows_ptr,  # [R] int32, as the next two: see paged_plan.Plan
    rows_ptr,
    prompts_ptr,
    lse_ptr,  # natural: [R, Hq, num_rows], or [T, Hq] if LSE_PACKED
    out_scores_ptr,  # [R, Hkv, max_seq_len] float32
    stride_qt,
    stride_qh,
    stride_block,
    stride_slot,
    stride_kh,
    stride_scale_block,
    stride_scale_slot,
    stride_scale_h,
    stride_lse_t,
    stride_lse_h,
    kv_heads,
    group,
    num_rows,
    page_size,
    max_blocks,
    num_blocks,
    max_seq_len,
    scale_log2,
    num_splits,
    QUANTISED: tl.constexpr,
    LSE_PACKED: tl.constexpr,
    ONE_ROW_TILE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One (KV head of a request, split of its prompt keys), all rows; 0 behind the prompt."""
    folded = group * num_rows
    _, split, unit, r, h = program_of(1, num_splits, kv_heads)
    own_rows = tl.load(rows_ptr + r)
    prompt = tl.load(prompts_ptr + r)
    first_row = tl.load(first_rows_ptr + r).to(tl.int64)
    q_head = q_ptr + first_row * stride_qt + h * group * stride_qh
    lse_head = lse_ptr + (r * group * kv_heads + h * group) * stride_lse_h
    if LSE_PACKED:
        lse_head = lse_ptr + first_row * stride_lse_t + h * group * stride_lse_h
    scale_head = None
    if k_scale_ptr is not None:
        scale_head = k_scale_ptr + h * stride_scale_h
    k_head = k_ptr + h * stride_kh
    weight = 1.0 / tl.maximum(group * own_rows, 1).to(tl.float32)

    scored = tl.where(own_rows > 0, prompt, 0)
    out_row = out_scores_ptr + unit * max_seq_len
    rows = tl.arange(0, BLOCK_ROWS)
    if ONE_ROW_TILE:
        query, lse2 = load_rows(
            q_head, lse_head, rows, folded, num_rows, own_rows,
            stride_qh, stride_qt, stride_lse_h, stride_lse_t, D, BLOCK_DIM,
        )  # fmt: skip
    begin, end = share_of(split, num_splits, scored, BLOCK_KEYS)
    for i in range(begin, end):
        start = (begin + end - 1 - i) * BLOCK_KEYS
        j = start + tl.arange(0, BLOCK_KEYS)
        key, key_scale = load_paged_keys(
            k_head, scale_head, table_ptr + r * max_blocks, start, j < scored,
            page_size, max_blocks, num_blocks, stride_block, stride_slot,
            stride_scale_block, stride_scale_slot,
            QUANTISED, q_ptr.dtype.element_ty, D, BLOCK_KEYS, BLOCK_DIM,
        )  # fmt: skip
        logit_scale = (key_scale * scale_log2)[:, None]
        if ONE_ROW_TILE:
            sums = column_sums(key, query, lse2, logit_scale, PRECISION)
        else:
            sums = tl.zeros([BLOCK_KEYS], tl.float32)
            for at in range(0, folded, BLOCK_ROWS):
                tile_query, tile_lse2 = load_rows(
                    q_head, lse_head, at + rows, folded, num_rows, own_rows,
                    stride_qh, stride_qt, stride_lse_h, stride_lse_t, D, BLOCK_DIM,
                )  # fmt: skip
                sums += column_sums(key, tile_query, tile_lse2, logit_scale, PRECISION)
        tl.store(out_row + j, sums * weight, mask=j < scored)
    begin, end = share_of(split, num_splits, max_seq_len - scored, BLOCK_KEYS)
    for tile in range(begin, end):
        j = scored + tile * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
        tl.store(out_row + j, tl.zeros([BLOCK_KEYS], tl.float32), mask=j < max_seq_len)


def paged_column_scores(
    problem: PagedProblem,
    lse: Tensor | None,  # [T, Hq] float32
    out: Tensor,  # [R, Hkv, max_seq_len] float32, contiguous
) -> None:
    """Write the mean over a request's rows and group of exp(logit - lse), and 0 from N_r on."""
    p, query = problem, problem.query
    target, size = target_for(query), query.element_size()
    max_seq_len = out.shape[2]
    if max_seq_len == 0:
        return
    if lse is None:
        row_lse = paged_lse(p, max_seq_len)
        stride_h, stride_t = row_lse.stride(1), row_lse.stride(2)
    else:
        row_lse = lse
        stride_t, stride_h = lse.stride()
    sweep = splits.paged_scores(
        p.units, p.folded, max_seq_len, p.head_dim, size, target, p.quantised
    )
    launch(
        paged_column_scores_kernel,
        (p.units * sweep.num_splits,),
        query,
        lse_ptr=row_lse,
        out_scores_ptr=out,
        stride_lse_t=stride_t,
        stride_lse_h=stride_h,
        max_seq_len=max_seq_len,
        num_splits=sweep.num_splits,
        LSE_PACKED=lse is not None,
        ONE_ROW_TILE=p.folded <= sweep.block_rows,
        **p.arguments(),
        **sweep.arguments(target.precision(size)),
    )
