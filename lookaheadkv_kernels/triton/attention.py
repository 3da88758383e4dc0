"""Room 1: attention of the folded observation rows, split over the keys.

The G * L rows that share a KV head are the rows of one tile, so K and V are read once per KV head.
They are too few to fill a chip, so the keys are cut into splits; each split writes its normalised
output and base-2 log-sum-exp, and a small kernel weighs them together in the order of the splits:
no atomics, the same bits every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import splits
from .launch import launch, target_for
from .problem import Problem, strides
from .splits import ceil_div
from .tiles import LN_2, descriptor, load_keys, load_queries, program_of, valid_keys


@triton.jit
def online_softmax(logits, peak, total, MASKED: tl.constexpr):
    """(probabilities relative to the new peak, fade of what was summed before, new peak, total)."""
    new_peak = tl.maximum(peak, tl.max(logits, 1))
    shift = new_peak
    if MASKED:
        shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    probs = tl.exp2(logits - shift[:, None])
    fade = tl.exp2(peak - shift)
    return probs, fade, new_peak, total * fade + tl.sum(probs, 1)


@triton.jit
def attend(
    acc,  # [BLOCK_ROWS, BLOCK_DIM] float32
    peak,  # [BLOCK_ROWS] running maximum of the base-2 logits
    total,  # [BLOCK_ROWS] running sum of exp2(logit - peak)
    query,  # [BLOCK_ROWS, BLOCK_DIM]
    k_ptr,
    v_ptr,
    k_desc,
    v_desc,
    b,
    h,
    start,
    stride_ks,
    stride_vs,
    limit,  # [BLOCK_ROWS] last key each row sees
    first,
    last,
    observed,  # first observation key
    scale_log2,
    MASKED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of keys of the online softmax (FlashAttention). Without MASKED all are seen."""
    j = start + tl.arange(0, BLOCK_KEYS)
    keep = ((j >= first) & (j < last)) | ((j >= observed) & (j <= tl.max(limit, 0)))
    if MASKED:
        # Not by descriptor: what lies in the padding (NaN, infinity) must become zero.
        key = load_keys(k_ptr, None, b, h, start, stride_ks, keep, D, BLOCK_KEYS, BLOCK_DIM)
    else:
        key = load_keys(k_ptr, k_desc, b, h, start, stride_ks, j >= 0, D, BLOCK_KEYS, BLOCK_DIM)
    logits = tl.dot(query, key.T, input_precision=PRECISION) * scale_log2
    if MASKED:
        logits = tl.where(keep[None, :] & (j[None, :] <= limit[:, None]), logits, float("-inf"))
    probs, fade, peak, total = online_softmax(logits, peak, total, MASKED)
    if v_ptr is not None:
        if MASKED:
            value = load_keys(v_ptr, None, b, h, start, stride_vs, keep, D, BLOCK_KEYS, BLOCK_DIM)
        else:
            value = load_keys(
                v_ptr, v_desc, b, h, start, stride_vs, j >= 0, D, BLOCK_KEYS, BLOCK_DIM
            )
        acc = tl.dot(probs.to(value.dtype), value, acc * fade[:, None], input_precision=PRECISION)
    return acc, peak, total


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
def split_attention_kernel(
    q_ptr,  # [B, Hq, L, D]
    k_ptr,  # [B, Hkv, N + L, D]
    v_ptr,  # like key, or None: the log-sum-exp alone
    k_desc,  # the same tensors as TMA descriptors, or None
    v_desc,
    out_parts_ptr,  # [B * Hkv, num_splits, G * L, D] float32, or None
    out_lse_parts_ptr,  # [B * Hkv, num_splits, G * L] float32, base 2
    leftpad_ptr,  # [B] int32 or None
    seqused_ptr,  # [B] int32 or None
    stride_qb,
    stride_qh,
    stride_qs,
    stride_kb,
    stride_kh,
    stride_ks,
    stride_vb,
    stride_vh,
    stride_vs,
    kv_heads,
    group,
    num_rows,
    num_prompt,
    scale_log2,
    num_splits,
    tiles_per_split,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One (KV head, split, row tile); row tiles that read the same keys are neighbours."""
    folded = group * num_rows
    row_tiles = tl.cdiv(folded, BLOCK_ROWS)
    row_tile, split, unit, b, h = program_of(row_tiles, num_splits, kv_heads)
    rows = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    first, last = valid_keys(leftpad_ptr, seqused_ptr, b, num_prompt)

    q_head = q_ptr + b * stride_qb + h * group * stride_qh
    k_head = k_ptr + b * stride_kb + h * stride_kh
    v_head = None
    if v_ptr is not None:
        v_head = v_ptr + b * stride_vb + h * stride_vh
    query = load_queries(q_head, rows, num_rows, rows < folded, stride_qh, stride_qs, D, BLOCK_DIM)
    # Rows past the last see nothing that the others do not: their limit must not widen the tile's.
    limit = num_prompt + tl.where(rows < folded, rows % num_rows, 0)

    acc = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    peak = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)

    # Tiles of this split: [full_begin, full_end) hold valid prompt keys alone. Before them, behind
    # them and at the observation keys there are a few that need a mask; the rest is padding.
    begin = split * tiles_per_split
    end = tl.minimum(begin + tiles_per_split, tl.cdiv(num_prompt + num_rows, BLOCK_KEYS))
    valid_begin = first // BLOCK_KEYS
    valid_end = tl.cdiv(last, BLOCK_KEYS)
    full_begin = tl.minimum(tl.cdiv(first, BLOCK_KEYS), valid_end)
    full_end = tl.maximum(last // BLOCK_KEYS, full_begin)
    observed_begin = tl.maximum(num_prompt // BLOCK_KEYS, valid_end)

    for tile in range(tl.maximum(begin, full_begin), tl.minimum(end, full_end)):
        acc, peak, total = attend(
            acc, peak, total, query, k_head, v_head, k_desc, v_desc,
            b.to(tl.int32), h.to(tl.int32), tile * BLOCK_KEYS, stride_ks, stride_vs,
            limit, first, last, num_prompt, scale_log2,
            False, D, BLOCK_KEYS, BLOCK_DIM, PRECISION,
        )  # fmt: skip
    head_begin = tl.maximum(begin, valid_begin)
    head = tl.maximum(tl.minimum(end, full_begin) - head_begin, 0)
    tail_begin = tl.maximum(begin, full_end)
    tail = tl.maximum(tl.minimum(end, valid_end) - tail_begin, 0)
    own_begin = tl.maximum(begin, observed_begin)
    own = tl.maximum(end - own_begin, 0)
    for i in range(head + tail + own):
        tile = tl.where(i < head, head_begin + i, tail_begin + i - head)
        tile = tl.where(i < head + tail, tile, own_begin + i - head - tail)
        acc, peak, total = attend(
            acc, peak, total, query, k_head, v_head, k_desc, v_desc,
            b.to(tl.int32), h.to(tl.int32), tile * BLOCK_KEYS, stride_ks, stride_vs,
            limit, first, last, num_prompt, scale_log2,
            True, D, BLOCK_KEYS, BLOCK_DIM, PRECISION,
        )  # fmt: skip

    part = (unit * num_splits + split) * folded
    tl.store(out_lse_parts_ptr + part + rows, peak + tl.log2(total), mask=rows < folded)
    if v_ptr is not None:
        d = tl.arange(0, BLOCK_DIM)
        acc *= (1.0 / tl.where(total == 0.0, 1.0, total))[:, None]
        tl.store(
            out_parts_ptr + (part + rows)[:, None] * D + d[None, :],
            acc,
            mask=(rows < folded)[:, None] & (d < D)[None, :],
        )


@triton.jit(do_not_specialize=["folded", "num_splits"])
def combine_kernel(
    parts_ptr,  # [units, num_splits, folded, D] float32, or None
    lse_parts_ptr,  # [units, num_splits, folded] float32, base 2
    out_ptr,  # [units, folded, D], or None
    out_lse_ptr,  # [units, folded] float32, natural
    folded,
    num_splits,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """The splits' outputs, each weighted with its share of the softmax's sum."""
    row_tiles = tl.cdiv(folded, BLOCK_ROWS)
    pid = tl.program_id(0)
    rows = (pid % row_tiles) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    unit = (pid // row_tiles).to(tl.int64)
    keep = rows < folded
    lse_ptr = lse_parts_ptr + unit * num_splits * folded + rows
    # In both loops the next splits' loads are under way while one is added, which is little work.
    peak = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    for split in tl.range(num_splits, num_stages=4):
        peak = tl.maximum(peak, tl.load(lse_ptr + split * folded, mask=keep, other=0.0))
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    acc = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    d = tl.arange(0, BLOCK_DIM)
    shape = keep[:, None] & (d < D)[None, :]
    for split in tl.range(num_splits, num_stages=4):
        weight = tl.exp2(tl.load(lse_ptr + split * folded, mask=keep, other=0.0) - peak)
        total += weight
        if parts_ptr is not None:
            at = (unit * num_splits + split) * folded + rows
            acc += weight[:, None] * tl.load(
                parts_ptr + at[:, None] * D + d[None, :], mask=shape, other=0.0
            )
    tl.store(out_lse_ptr + unit * folded + rows, (peak + tl.log2(total)) * LN_2, mask=keep)
    if parts_ptr is not None:
        out = (acc * (1.0 / total)[:, None]).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + (unit * folded + rows)[:, None] * D + d[None, :], out, mask=shape)


def attention(
    problem: Problem,
    out: Tensor | None,  # [B, Hq, L, D] in the query's dtype; None: the log-sum-exp alone
    out_lse: Tensor,  # [B, Hq, L] float32
) -> None:
    """Write the output and the natural log-sum-exp of the L rows, both contiguous."""
    p, query = problem, problem.query
    target, size = target_for(query), query.element_size()
    value = None if out is None else p.value
    sweep = splits.attention(
        p.units, p.folded, p.num_keys, p.head_dim, size, target, value is not None
    )
    parts_shape = (p.units, sweep.num_splits, p.folded)
    lse_parts = query.new_empty(parts_shape, dtype=torch.float32)
    parts = v_desc = None
    if value is not None:
        parts = query.new_empty((*parts_shape, p.head_dim), dtype=torch.float32)
        v_desc = descriptor(value, sweep.block_keys, sweep.block_dim, target)
    launch(
        split_attention_kernel,
        (p.units * sweep.num_splits * ceil_div(p.folded, sweep.block_rows),),
        query,
        v_ptr=value,
        k_desc=descriptor(p.key, sweep.block_keys, sweep.block_dim, target),
        v_desc=v_desc,
        out_parts_ptr=parts,
        out_lse_parts_ptr=lse_parts,
        **strides("v", value),
        num_splits=sweep.num_splits,
        tiles_per_split=sweep.tiles_per_split,
        **p.arguments(),
        **p.padding(),
        **sweep.arguments(target.precision(size)),
    )
    combine(parts, lse_parts, out, out_lse, p.head_dim)


def combine(
    parts: Tensor | None,  # [units, num_splits, folded, D] float32
    lse_parts: Tensor,  # [units, num_splits, folded] float32, base 2
    out: Tensor | None,  # [units, folded, D], contiguous
    out_lse: Tensor,  # [units, folded], contiguous
    head_dim: int,
) -> None:
    """Write the splits' sum, in their order; without ``parts`` the log-sum-exp alone."""
    units, num_splits, folded = lse_parts.shape
    rows = splits.combine_rows(folded, head_dim)
    launch(
        combine_kernel,
        (units * ceil_div(folded, rows),),
        lse_parts,
        parts_ptr=parts,
        lse_parts_ptr=lse_parts,
        out_ptr=out,
        out_lse_ptr=out_lse,
        folded=folded,
        num_splits=num_splits,
        D=head_dim,
        BLOCK_ROWS=rows,
        BLOCK_DIM=splits.block_dim(head_dim),
        num_warps=4,
    )


def lse_of(problem: Problem) -> Tensor:
    """The rows' natural log-sum-exp: [B, Hq, L] float32, contiguous."""
    lse = problem.query.new_empty(problem.query.shape[:3], dtype=torch.float32)
    attention(problem, None, lse)
    return lse
