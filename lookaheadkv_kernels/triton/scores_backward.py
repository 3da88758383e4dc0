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

from . import heuristics
from .attention import Problem
from .launch import launch, target_for
from .scores import load_lse2
from .tiles import load_keys, load_matrix, row_offsets, sum_splits, valid_keys


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
    pid = tl.program_id(0)
    rows = (pid % row_tiles) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    split = pid // row_tiles % num_splits
    unit = (pid // row_tiles // num_splits).to(tl.int64)
    b = unit // kv_heads
    h = unit % kv_heads
    first, last = valid_keys(leftpad_ptr, seqused_ptr, b, num_prompt)
    q_head = q_ptr + b * stride_qb + h * group * stride_qh
    k_head = k_ptr + b * stride_kb + h * stride_kh
    offsets = row_offsets(rows, num_rows, stride_qh, stride_qs)
    query = load_matrix(q_head, offsets, rows < folded, D, BLOCK_DIM)
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
    start = tl.program_id(0) % tiles * BLOCK_KEYS
    unit = (tl.program_id(0) // tiles).to(tl.int64)
    b = unit // kv_heads
    h = unit % kv_heads
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
        offsets = row_offsets(rows, num_rows, stride_qh, stride_qs)
        query = load_matrix(q_head, offsets, rows < folded, D, BLOCK_DIM)
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
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N + L, D]
    lse: Tensor,  # [B, Hq, L] float32, contiguous
) -> tuple[Tensor, Tensor]:
    """Gradients of query and key, contiguous, in their dtype."""
    p, target = problem, target_for(query)
    size = query.element_size()
    sweep = heuristics.backward(p.units, p.folded, p.num_keys, p.head_dim, size, target)
    weight = p.scale / p.folded
    common = {
        "q_ptr": query,
        "k_ptr": key,
        "lse_ptr": lse,
        "grad_ptr": grad_scores,
        "leftpad_ptr": p.leftpad_k,
        "seqused_ptr": p.seqused_k,
        "stride_qb": query.stride(0),
        "stride_qh": query.stride(1),
        "stride_qs": query.stride(2),
        "stride_kb": key.stride(0),
        "stride_kh": key.stride(1),
        "stride_ks": key.stride(2),
        "kv_heads": p.kv_heads,
        "group": p.group,
        "num_rows": p.num_rows,
        "num_prompt": p.num_prompt,
        "scale_log2": p.scale_log2,
        "D": p.head_dim,
        "BLOCK_ROWS": sweep.block_rows,
        "BLOCK_KEYS": sweep.block_keys,
        "BLOCK_DIM": sweep.block_dim,
        "PRECISION": target.precision(size),
        "num_warps": sweep.num_warps,
        "num_stages": sweep.num_stages,
    }
    row_programs = p.units * sweep.num_splits * heuristics.ceil_div(p.folded, sweep.block_rows)

    def over_rows(delta: Tensor | None, out: Tensor, row_size: int, weight: float) -> Tensor:
        parts = query.new_empty(
            (p.units, sweep.num_splits, p.folded, row_size), dtype=torch.float32
        )
        launch(
            row_gradient_kernel,
            (row_programs,),
            query,
            delta_ptr=delta,
            out_parts_ptr=parts,
            num_splits=sweep.num_splits,
            tiles_per_split=sweep.tiles_per_split,
            **common,
        )
        sum_splits(parts, out, p.units, p.folded * row_size, weight)
        return out

    delta = over_rows(None, query.new_empty((p.units, p.folded), dtype=torch.float32), 1, 1.0)
    grad_query = over_rows(delta, query.new_empty(query.shape), p.head_dim, weight)
    grad_key = key.new_empty(key.shape)
    launch(
        key_gradient_kernel,
        (p.units * heuristics.ceil_div(p.num_keys, sweep.block_keys),),
        query,
        delta_ptr=delta,
        out_ptr=grad_key,
        weight=weight,
        **common,
    )
    return grad_query, grad_key
