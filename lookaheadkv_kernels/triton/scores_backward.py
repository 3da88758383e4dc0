"""Gradient of the column scores, with the softmax Jacobian written out.

With p the probabilities and g the upstream gradient (zero on observation keys), per row:
delta = <g, p>, ds = p (g - delta) / (G L), then dq = scale * ds k and dk = scale * ds^T q. Three
sweeps that each own what they write: delta and dq are split over the keys and summed in order of
the splits, dk belongs to its tile of keys.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import splits
from .launch import launch, target_for
from .problem import Problem
from .scores import load_lse2
from .splits import ceil_div
from .tiles import load_keys, load_queries, program_of, sum_splits, valid_keys


@triton.jit
def tile_probabilities(
    query,
    key,
    lse2,
    j,
    keep,
    limit,
    scale_log2,
    PRECISION: tl.constexpr,
):
    """exp2(logit - lse2) of the keys each row sees, zero elsewhere: [BLOCK_ROWS, BLOCK_KEYS]."""
    logits = tl.dot(query, key.T, input_precision=PRECISION) * scale_log2
    seen = keep[None, :] & (j[None, :] <= limit[:, None])
    return tl.where(seen, tl.exp2(logits - lse2[:, None]), 0.0)


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
def row_gradient_kernel(
    q_ptr,  # [B, Hq, L, D]
    k_ptr,  # [B, Hkv, N + L, D]
    lse_ptr,  # [B, Hq, L] float32
    grad_ptr,  # [B, Hkv, N] float32
    delta_ptr,  # [B * Hkv, G * L] float32; None: this sweep computes its parts
    out_parts_ptr,  # [B * Hkv, num_splits, G * L, D] float32, or [.., G * L] without delta_ptr
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
    num_splits,
    tiles_per_split,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One (KV head, split, row tile): parts of sum_j p g (delta), or of sum_j p (g - delta) k."""
    folded = group * num_rows
    row_tiles = tl.cdiv(folded, BLOCK_ROWS)
    row_tile, split, unit, b, h = program_of(row_tiles, num_splits, kv_heads)
    rows = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    first, last = valid_keys(leftpad_ptr, seqused_ptr, b, num_prompt)
    q_head = q_ptr + b * stride_qb + h * group * stride_qh
    k_head = k_ptr + b * stride_kb + h * stride_kh
    query = load_queries(q_head, rows, num_rows, rows < folded, stride_qh, stride_qs, D, BLOCK_DIM)
    lse2 = load_lse2(lse_ptr + unit * folded, rows, folded)
    limit = num_prompt + rows % num_rows
    num_keys = num_prompt + num_rows

    delta = tl.zeros([BLOCK_ROWS], tl.float32)
    if delta_ptr is not None:
        delta = tl.load(delta_ptr + unit * folded + rows, mask=rows < folded, other=0.0)
        acc = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    begin = split * tiles_per_split
    for tile in range(begin, tl.minimum(begin + tiles_per_split, tl.cdiv(num_keys, BLOCK_KEYS))):
        start = tile * BLOCK_KEYS
        j = start + tl.arange(0, BLOCK_KEYS)
        valid = (j >= first) & (j < last)
        keep = valid | ((j >= num_prompt) & (j < num_keys))
        key = load_keys(k_head, None, 0, 0, start, stride_ks, keep, D, BLOCK_KEYS, BLOCK_DIM)
        grad = tl.load(grad_ptr + unit * num_prompt + j, mask=valid, other=0.0)
        probs = tile_probabilities(query, key, lse2, j, keep, limit, scale_log2, PRECISION)
        if delta_ptr is not None:
            jacobian = probs * (grad[None, :] - delta[:, None])
            acc = tl.dot(jacobian.to(key.dtype), key, acc, input_precision=PRECISION)
        else:
            delta += tl.sum(probs * grad[None, :], 1)

    part = (unit * num_splits + split) * folded + rows
    if delta_ptr is not None:
        d = tl.arange(0, BLOCK_DIM)
        shape = (rows < folded)[:, None] & (d < D)[None, :]
        tl.store(out_parts_ptr + part[:, None] * D + d[None, :], acc, mask=shape)
    else:
        tl.store(out_parts_ptr + part, delta, mask=rows < folded)


@triton.jit(do_not_specialize=["kv_heads", "group", "num_rows", "num_prompt"])
def key_gradient_kernel(
    q_ptr,  # [B, Hq, L, D]
    k_ptr,  # [B, Hkv, N + L, D]
    lse_ptr,  # [B, Hq, L] float32
    grad_ptr,  # [B, Hkv, N] float32
    delta_ptr,  # [B * Hkv, G * L] float32
    out_ptr,  # [B, Hkv, N + L, D]
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
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of keys of one KV head, all rows; padded keys get zeros."""
    folded = group * num_rows
    num_keys = num_prompt + num_rows
    tiles = tl.cdiv(num_keys, BLOCK_KEYS)
    tile, _, unit, b, h = program_of(tiles, 1, kv_heads)
    start = tile * BLOCK_KEYS
    first, last = valid_keys(leftpad_ptr, seqused_ptr, b, num_prompt)
    q_head = q_ptr + b * stride_qb + h * group * stride_qh
    k_head = k_ptr + b * stride_kb + h * stride_kh
    j = start + tl.arange(0, BLOCK_KEYS)
    valid = (j >= first) & (j < last)
    keep = valid | ((j >= num_prompt) & (j < num_keys))
    key = load_keys(k_head, None, 0, 0, start, stride_ks, keep, D, BLOCK_KEYS, BLOCK_DIM)
    grad = tl.load(grad_ptr + unit * num_prompt + j, mask=valid, other=0.0)
    acc = tl.zeros([BLOCK_KEYS, BLOCK_DIM], tl.float32)
    for at in range(0, folded, BLOCK_ROWS):
        rows = at + tl.arange(0, BLOCK_ROWS)
        query = load_queries(
            q_head, rows, num_rows, rows < folded, stride_qh, stride_qs, D, BLOCK_DIM
        )
        lse2 = load_lse2(lse_ptr + unit * folded, rows, folded)
        delta = tl.load(delta_ptr + unit * folded + rows, mask=rows < folded, other=0.0)
        limit = num_prompt + rows % num_rows
        probs = tile_probabilities(query, key, lse2, j, keep, limit, scale_log2, PRECISION)
        jacobian = probs * (grad[None, :] - delta[:, None])
        acc = tl.dot(jacobian.T.to(query.dtype), query, acc, input_precision=PRECISION)
    d = tl.arange(0, BLOCK_DIM)
    tl.store(
        out_ptr + (unit * num_keys + j)[:, None] * D + d[None, :],
        (acc * weight).to(out_ptr.dtype.element_ty),
        mask=(j < num_keys)[:, None] & (d < D)[None, :],
    )


def column_scores_backward(
    problem: Problem,
    grad_scores: Tensor,  # [B, Hkv, N] float32, contiguous
    lse: Tensor,  # [B, Hq, L] float32, contiguous
    out_query: Tensor,  # [B, Hq, L, D], as the next contiguous, in the inputs' dtype
    out_key: Tensor,  # [B, Hkv, N + L, D]
) -> None:
    """Write the gradients of query and key."""
    p, query = problem, problem.query
    target, size = target_for(query), query.element_size()
    sweep = splits.backward(p.units, p.folded, p.num_keys, p.head_dim, size, target)
    weight = p.scale / p.folded
    common = {
        "lse_ptr": lse,
        "grad_ptr": grad_scores,
        **p.arguments(),
        **p.padding(),
        **sweep.arguments(target.precision(size)),
    }

    def over_rows(delta: Tensor | None, out: Tensor, row_size: int, weight: float) -> None:
        parts = query.new_empty(
            (p.units, sweep.num_splits, p.folded, row_size), dtype=torch.float32
        )
        launch(
            row_gradient_kernel,
            (p.units * sweep.num_splits * ceil_div(p.folded, sweep.block_rows),),
            query,
            delta_ptr=delta,
            out_parts_ptr=parts,
            num_splits=sweep.num_splits,
            tiles_per_split=sweep.tiles_per_split,
            **common,
        )
        sum_splits(parts, out, p.units, p.folded * row_size, weight)

    delta = query.new_empty((p.units, p.folded), dtype=torch.float32)
    over_rows(None, delta, 1, 1.0)
    over_rows(delta, out_query, p.head_dim, weight)
    launch(
        key_gradient_kernel,
        (p.units * ceil_div(p.num_keys, sweep.block_keys),),
        query,
        delta_ptr=delta,
        out_ptr=out_key,
        weight=weight,
        **common,
    )
