"""Room 1 over a paged cache: the log-sum-exp of every request's rows.

The kernel is that of attention.py without what a paged cache has not (padding, tiles through the
copy engine, values); keys come by the block table, quantised ones become numbers on their way, and
their scales multiply the logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import heuristics
from .attention import combine_kernel, online_softmax
from .launch import launch, target_for
from .paged import Plan
from .tiles import load_matrix, load_paged_keys, row_offsets

QUANTISED = {
    torch.float8_e4m3fn: "float8_e4m3fn",
    torch.float8_e5m2: "float8_e5m2",
    torch.int8: "int8",
}


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
    first_rows_ptr,  # [R] int32, as the next two: see paged.Plan
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
    pid = tl.program_id(0)
    rows = (pid % row_tiles) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    split = pid // row_tiles % num_splits
    unit = (pid // row_tiles // num_splits).to(tl.int64)
    r = unit // kv_heads
    h = unit % kv_heads
    own_rows = tl.load(rows_ptr + r)
    prompt = tl.load(prompts_ptr + r)
    first_row = tl.load(first_rows_ptr + r).to(tl.int64)

    there = (rows < folded) & (rows % num_rows < own_rows)
    offsets = row_offsets(rows, num_rows, stride_qh, stride_qt)
    q_head = q_ptr + first_row * stride_qt + h * group * stride_qh
    query = load_matrix(q_head, offsets, there, D, BLOCK_DIM)
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


@dataclass(frozen=True)
class PagedProblem:
    """One scoring call: the inputs, validated, and their plan."""

    query: Tensor  # [T, Hq, D]
    key_cache: Tensor  # [num_blocks, page_size, Hkv, D]
    block_table: Tensor  # [R, max_blocks] int32, contiguous
    k_scale: Tensor | None
    plan: Plan
    num_rows: int
    scale: float

    @property
    def units(self) -> int:
        """R * Hkv."""
        return self.block_table.shape[0] * self.key_cache.shape[2]

    @property
    def group(self) -> int:
        return self.query.shape[1] // self.key_cache.shape[2]

    @property
    def folded(self) -> int:
        """Rows that share a KV head, at most."""
        return self.group * self.num_rows

    def arguments(self) -> dict[str, Any]:
        """What both kernels take."""
        cache, query, scale = self.key_cache, self.query, self.k_scale
        quantised = QUANTISED.get(cache.dtype, "")
        steps = [0, 0, 0]  # of one scale for all
        if scale is not None and scale.dim() == 3:
            steps = list(scale.stride())
        elif scale is not None and scale.numel() > 1:
            steps = [0, 0, scale.stride(0)]
        return {
            "q_ptr": query,
            "k_ptr": cache.view(torch.uint8) if quantised else cache,
            "k_scale_ptr": scale,
            "table_ptr": self.block_table,
            "first_rows_ptr": self.plan.first_rows,
            "rows_ptr": self.plan.rows,
            "prompts_ptr": self.plan.prompts,
            "stride_qt": query.stride(0),
            "stride_qh": query.stride(1),
            "stride_block": cache.stride(0),
            "stride_slot": cache.stride(1),
            "stride_kh": cache.stride(2),
            "stride_scale_block": steps[0],
            "stride_scale_slot": steps[1],
            "stride_scale_h": steps[2],
            "kv_heads": cache.shape[2],
            "group": self.group,
            "num_rows": self.num_rows,
            "page_size": cache.shape[1],
            "max_blocks": self.block_table.shape[1],
            "num_blocks": cache.shape[0],
            "scale_log2": self.scale * math.log2(math.e),
            "QUANTISED": quantised,
            "D": query.shape[2],
        }


def paged_lse(problem: PagedProblem, max_seq_len: int) -> Tensor:
    """Natural log-sum-exp [R, Hq, num_rows]; of rows that do not exist anything."""
    p, query = problem, problem.query
    target, size = target_for(query), query.element_size()
    head_dim = query.shape[2]
    keys = max_seq_len + p.num_rows
    sweep = heuristics.attention(p.units, p.folded, keys, head_dim, size, target, False)
    sweep = heuristics.paged_splits(sweep, keys)
    lse_parts = query.new_empty((p.units, sweep.num_splits, p.folded), dtype=torch.float32)
    launch(
        paged_lse_kernel,
        (p.units * sweep.num_splits * heuristics.ceil_div(p.folded, sweep.block_rows),),
        query,
        out_lse_parts_ptr=lse_parts,
        num_splits=sweep.num_splits,
        BLOCK_ROWS=sweep.block_rows,
        BLOCK_KEYS=sweep.block_keys,
        BLOCK_DIM=sweep.block_dim,
        PRECISION=target.precision(size),
        num_warps=sweep.num_warps,
        num_stages=sweep.num_stages,
        **p.arguments(),
    )
    lse = query.new_empty((p.units, p.folded), dtype=torch.float32)
    rows = heuristics.combine_rows(p.folded, head_dim)
    launch(
        combine_kernel,
        (p.units * heuristics.ceil_div(p.folded, rows),),
        query,
        parts_ptr=None,
        lse_parts_ptr=lse_parts,
        out_ptr=None,
        out_lse_ptr=lse,
        folded=p.folded,
        num_splits=sweep.num_splits,
        D=head_dim,
        BLOCK_ROWS=rows,
        BLOCK_DIM=sweep.block_dim,
        num_warps=4,
    )
    return lse.view(p.block_table.shape[0], query.shape[1], p.num_rows)
