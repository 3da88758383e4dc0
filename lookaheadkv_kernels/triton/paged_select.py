"""Room 3 over a paged batch: select.py with one budget per request, optionally for all heads."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .._checks_paged import PagedSelection
from .launch import launch
from .paged_plan import Plan
from .problem import Selection, strides
from .select import select
from .splits import ceil_div
from .tiles import row_block


@triton.jit(do_not_specialize=["kv_heads", "length"])
def reduce_heads_kernel(
    scores_ptr,  # [R, Hkv, N] float32
    prompts_ptr,  # [R] int32
    out_ptr,  # [R, 1, N] float32, contiguous
    stride_r,
    stride_h,
    stride_n,
    kv_heads,
    length,
    LARGEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The heads' sum, in their order, or their maximum, for BLOCK positions of one request."""
    r, at = row_block(length, BLOCK)
    inside = at < tl.load(prompts_ptr + r)
    row_ptr = scores_ptr + r * stride_r + at.to(tl.int64) * stride_n
    best = tl.load(row_ptr, mask=inside, other=0.0)
    for h in range(1, kv_heads):
        score = tl.load(row_ptr + h * stride_h, mask=inside, other=0.0)
        if LARGEST:
            # A NaN is passed over where there is a number.
            best = tl.where((best != best) | (score > best), score, best)
        else:
            best += score
    tl.store(out_ptr + r * length + at, best, mask=at < length)


def reduce_heads(scores: Tensor, prompts: Tensor, largest: bool) -> Tensor:
    """[R, Hkv, N] -> [R, 1, N]; undefined behind a request's prompt."""
    requests, kv_heads, length = scores.shape
    reduced = scores.new_empty((requests, 1, length))
    block = 1024
    launch(
        reduce_heads_kernel,
        (requests * ceil_div(length, block),),
        scores,
        scores_ptr=scores,
        prompts_ptr=prompts,
        out_ptr=reduced,
        **strides("", scores, "rhn"),
        kv_heads=kv_heads,
        length=length,
        LARGEST=largest,
        BLOCK=block,
        num_warps=4,
    )
    return reduced


def paged_select(
    scores: Tensor,  # [R, Hkv, max_seq_len] float32, any strides
    plan: Plan,
    selection: PagedSelection,
    out: Tensor,  # [R, Hkv or 1, max_budget] int32, contiguous
) -> None:
    """Write every request's kept positions, ascending, -1 behind them."""
    if selection.head_reduction != "none":
        scores = reduce_heads(scores, plan.prompts, selection.head_reduction == "max")
    if scores.shape[2] == 0:
        out.fill_(-1)
        return
    every = Selection(
        selection.max_budget,
        selection.pool_kernel,
        selection.num_sink,
        selection.num_recent,
        counts=plan.counts,
        appended=plan.appended,
    )
    select(scores, every, None, plan.prompts, out)
