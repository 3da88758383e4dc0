"""Room 1 for a whole prompt: causal attention of all S rows and the scores of the last L, fused.

The programs of the lookahead rows come first: theirs is the longest work (all keys, twice), so it
runs beside the prompt's programs, which follow from the longest to the shortest.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import splits
from .attention import attend
from .launch import launch, target_for
from .problem import Problem, strides
from .scores import column_sums
from .splits import ceil_div
from .tiles import LN_2, descriptor, load_keys, load_queries, sum_splits


@triton.jit(do_not_specialize=["batch", "kv_heads", "group", "num_rows", "num_prompt"])
def prefill_attention_kernel(
    q_ptr,  # [B, Hq, S, D]
    k_ptr,  # [B, Hkv, S, D]
    v_ptr,  # like key
    k_desc,  # the same tensors as TMA descriptors, or None
    v_desc,
    out_ptr,  # [B, Hq, S, D]
    out_lse_ptr,  # [B, Hq, S] float32
    out_scores_ptr,  # [B * Hkv, row tiles, N] float32
    stride_qb,
    stride_qh,
    stride_qs,
    stride_kb,
    stride_kh,
    stride_ks,
    stride_vb,
    stride_vh,
    stride_vs,
    batch,
    kv_heads,
    group,
    num_rows,
    num_prompt,
    scale_log2,
    weight,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of rows: lookahead rows of a KV head's whole group, or prompt rows of one head."""
    num_keys = num_prompt + num_rows
    row_tiles = tl.cdiv(group * num_rows, BLOCK_ROWS)
    lookahead_programs = batch * kv_heads * row_tiles
    pid = tl.program_id(0)
    lookahead = pid < lookahead_programs
    # A prompt tile is a folded tile as well: the N rows of a "group" of one head, longest first.
    heads = batch * kv_heads * group
    prompt_pid = tl.maximum(pid - lookahead_programs, 0)
    from_last = tl.cdiv(num_prompt, BLOCK_ROWS) - 1 - prompt_pid // heads
    row_tile = tl.where(lookahead, pid % row_tiles, from_last)
    head = tl.where(lookahead, pid // row_tiles * group, prompt_pid % heads)  # of B * Hq
    period = tl.where(lookahead, num_rows, num_prompt)
    offset = tl.where(lookahead, num_prompt, 0)
    folded = tl.where(lookahead, group * num_rows, num_prompt)
    b = (head // (kv_heads * group)).to(tl.int64)
    q_h = (head % (kv_heads * group)).to(tl.int64)
    h = q_h // group
    rows = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    keep = rows < folded
    position = offset + rows % period

    k_head = k_ptr + b * stride_kb + h * stride_kh
    v_head = v_ptr + b * stride_vb + h * stride_vh
    q_head = q_ptr + b * stride_qb + q_h * stride_qh + offset.to(tl.int64) * stride_qs
    query = load_queries(q_head, rows, period, keep, stride_qh, stride_qs, D, BLOCK_DIM)
    acc = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    peak = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    limit = tl.where(keep, position, 0)
    # Rows of folded heads wrap around: their smallest position is the tile's first key limit.
    full = (tl.min(tl.where(keep, position, num_keys), 0) + 1) // BLOCK_KEYS
    end = tl.cdiv(tl.max(limit, 0) + 1, BLOCK_KEYS)
    for tile in range(0, full):
        acc, peak, total = attend(
            acc, peak, total, query, k_head, v_head, k_desc, v_desc,
            b.to(tl.int32), h.to(tl.int32), tile * BLOCK_KEYS, stride_ks, stride_vs,
            limit, 0, 0, 0, scale_log2,
            False, D, BLOCK_KEYS, BLOCK_DIM, PRECISION,
        )  # fmt: skip
    for tile in range(full, end):
        acc, peak, total = attend(
            acc, peak, total, query, k_head, v_head, k_desc, v_desc,
            b.to(tl.int32), h.to(tl.int32), tile * BLOCK_KEYS, stride_ks, stride_vs,
            limit, 0, 0, 0, scale_log2,
            True, D, BLOCK_KEYS, BLOCK_DIM, PRECISION,
        )  # fmt: skip

    lse2 = peak + tl.log2(total)
    at = (b * kv_heads * group + q_h + rows // period) * num_keys + position
    tl.store(out_lse_ptr + at, lse2 * LN_2, mask=keep)
    d = tl.arange(0, BLOCK_DIM)
    tl.store(
        out_ptr + at[:, None] * D + d[None, :],
        (acc * (1.0 / total)[:, None]).to(out_ptr.dtype.element_ty),
        mask=keep[:, None] & (d < D)[None, :],
    )

    if lookahead:
        lse2 = tl.where(keep, lse2, float("inf"))
        part = ((b * kv_heads + h) * row_tiles + row_tile) * num_prompt
        tiles = tl.cdiv(num_prompt, BLOCK_KEYS)
        for i in range(tiles):  # from the last to the first: the last are still in the cache
            start = (tiles - 1 - i) * BLOCK_KEYS
            j = start + tl.arange(0, BLOCK_KEYS)
            key = load_keys(
                k_head, k_desc, b.to(tl.int32), h.to(tl.int32), start, stride_ks,
                j < num_prompt, D, BLOCK_KEYS, BLOCK_DIM,
            )  # fmt: skip
            sums = column_sums(key, query, lse2, scale_log2, PRECISION)
            tl.store(out_scores_ptr + part + j, sums * weight, mask=j < num_prompt)


def prefill_attention(
    problem: Problem,  # no padding
    out: Tensor,  # [B, Hq, N + L, D] in the query's dtype, as the next two contiguous
    out_lse: Tensor,  # [B, Hq, N + L] float32
    out_scores: Tensor,  # [B, Hkv, N] float32
) -> None:
    """Write the output, the log-sum-exp and the scores."""
    p, query = problem, problem.query
    target, size = target_for(query), query.element_size()
    assert p.value is not None
    sweep = splits.prefill(p.units, p.num_keys, p.head_dim, size, target)
    row_tiles = ceil_div(p.folded, sweep.block_rows)
    prompt_tiles = ceil_div(p.num_prompt, sweep.block_rows)
    parts = out_scores
    if row_tiles > 1:
        parts = query.new_empty((p.units, row_tiles, p.num_prompt), dtype=torch.float32)
    launch(
        prefill_attention_kernel,
        (p.units * row_tiles + p.batch * p.heads * prompt_tiles,),
        query,
        v_ptr=p.value,
        k_desc=descriptor(p.key, sweep.block_keys, sweep.block_dim, target),
        v_desc=descriptor(p.value, sweep.block_keys, sweep.block_dim, target),
        out_ptr=out,
        out_lse_ptr=out_lse,
        out_scores_ptr=parts,
        **strides("v", p.value),
        batch=p.batch,
        weight=1.0 / p.folded,
        **p.arguments(),
        **sweep.arguments(target.precision(size)),
    )
    if row_tiles > 1:
        sum_splits(parts, out_scores, p.units, p.num_prompt, 1.0)
