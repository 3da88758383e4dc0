"""Room 2: column scores, the mean probability each prompt key receives.

The matrix product is taken transposed, keys x rows: the sum over the rows then runs along the
registers of a thread and a few lanes, not across warps.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import splits
from .launch import launch, target_for
from .problem import Problem
from .tiles import LOG2_E, descriptor, load_keys, load_queries, program_of, valid_keys


@triton.jit
def load_lse2(lse_ptr, rows, folded):
    """Base-2 log-sum-exp of folded rows; infinity past the last, which makes their share zero."""
    return tl.load(lse_ptr + rows, mask=rows < folded, other=float("inf")) * LOG2_E


@triton.jit
def column_sums(key, query, lse2, scale_log2, PRECISION: tl.constexpr):
    """Sum over the rows of exp2(logit - lse2): [BLOCK_KEYS].

    Rows that do not exist are zeros with an lse2 of infinity. A key with an infinity makes NaN of
    such a row's logit, so their share is not left to the exponential.
    """
    logits = tl.dot(key, query.T, input_precision=PRECISION)
    share = tl.exp2(logits * scale_log2 - lse2[None, :])
    return tl.sum(tl.where(lse2[None, :] == float("inf"), 0.0, share), 1)


@triton.jit(
    do_not_specialize=[
        "kv_heads",
        "group",
        "num_rows",
        "num_prompt",
        "num_splits",
        "tiles_per_split",
    ]
)
def column_scores_kernel(
    q_ptr,  # [B, Hq, L, D]
    k_ptr,  # [B, Hkv, N + L, D]
    k_desc,  # key as a TMA descriptor, or None
    lse_ptr,  # [B, Hq, L] float32
    out_scores_ptr,  # [B, Hkv, N] float32, zeros where there is padding
    leftpad_ptr,  # [B] int32 or None
    seqused_ptr,  # [B] int32 or None
    stride_qb,
    stride_qh,
    stride_qs,
    stride_kb,
    stride_kh,
    stride_ks,
    kv_heads,
    group,
    num_rows,
    num_prompt,
    scale_log2,
    weight,
    num_splits,
    tiles_per_split,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    ONE_ROW_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One (KV head, split of the prompt keys), all rows.

    From the last tile to the first: where an attention sweep came before, the last keys of its
    splits are those that the L2 cache still holds.
    """
    folded = group * num_rows
    _, split, unit, b, h = program_of(1, num_splits, kv_heads)
    first, last = valid_keys(leftpad_ptr, seqused_ptr, b, num_prompt)
    q_head = q_ptr + b * stride_qb + h * group * stride_qh
    k_head = k_ptr + b * stride_kb + h * stride_kh
    lse_head = lse_ptr + unit * folded

    rows = tl.arange(0, BLOCK_ROWS)
    if ONE_ROW_TILE:
        query = load_queries(
            q_head, rows, num_rows, rows < folded, stride_qh, stride_qs, D, BLOCK_DIM
        )
        lse2 = load_lse2(lse_head, rows, folded)
    begin = tl.maximum(split * tiles_per_split, first // BLOCK_KEYS)
    end = tl.minimum((split + 1) * tiles_per_split, tl.cdiv(last, BLOCK_KEYS))
    for i in range(begin, end):
        start = (begin + end - 1 - i) * BLOCK_KEYS
        j = start + tl.arange(0, BLOCK_KEYS)
        key = load_keys(
            k_head, k_desc, b.to(tl.int32), h.to(tl.int32), start, stride_ks,
            j < num_prompt, D, BLOCK_KEYS, BLOCK_DIM,
        )  # fmt: skip
        if ONE_ROW_TILE:
            sums = column_sums(key, query, lse2, scale_log2, PRECISION)
        else:
            sums = tl.zeros([BLOCK_KEYS], tl.float32)
            for at in range(0, folded, BLOCK_ROWS):
                own = at + rows
                tile_query = load_queries(
                    q_head, own, num_rows, own < folded, stride_qh, stride_qs, D, BLOCK_DIM
                )
                tile_lse2 = load_lse2(lse_head, own, folded)
                sums += column_sums(key, tile_query, tile_lse2, scale_log2, PRECISION)
        tl.store(
            out_scores_ptr + unit * num_prompt + j, sums * weight, mask=(j >= first) & (j < last)
        )


def column_scores(
    problem: Problem,
    lse: Tensor,  # [B, Hq, L] float32, contiguous
    out: Tensor,  # [B, Hkv, N] float32, contiguous
) -> None:
    """Write the mean over the G * L rows of exp(scale * q k^T - lse)."""
    p, query = problem, problem.query
    target, size = target_for(query), query.element_size()
    sweep = splits.scores(p.units, p.folded, p.num_prompt, p.head_dim, size, target)
    if p.padded:
        out.zero_()
    if p.num_prompt == 0:
        return
    launch(
        column_scores_kernel,
        (p.units * sweep.num_splits,),
        query,
        k_desc=descriptor(p.key, sweep.block_keys, sweep.block_dim, target),
        lse_ptr=lse,
        out_scores_ptr=out,
        weight=1.0 / p.folded,
        num_splits=sweep.num_splits,
        tiles_per_split=sweep.tiles_per_split,
        ONE_ROW_TILE=p.folded <= sweep.block_rows,
        **p.arguments(),
        **p.padding(),
        **sweep.arguments(target.precision(size)),
    )
