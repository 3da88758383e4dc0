"""The lengths of a paged batch, worked out on the device once for all kernels of an op.

What kernels need of ``cu_seqlens_q``, ``seq_lens`` and ``budgets`` is in one small tensor, clamped
into range: the host cannot read it without a sync, and a GPU cannot report an error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._checks_paged import PagedSelection
from .launch import launch
from .splits import ceil_div


@triton.jit(
    do_not_specialize=[
        "num_requests",
        "pitch",
        "num_rows",
        "num_queries",
        "most_keys",
        "max_budget",
        "pinned",
    ]
)
def plan_kernel(
    cu_seqlens_ptr,  # [R + 1] int32
    seq_lens_ptr,  # [R] int32
    budgets_ptr,  # [R] int32, or None
    out_plan_ptr,  # [5, pitch] int32: the fields of Plan, of R numbers
    out_kept_lens_ptr,  # [R] int32
    num_requests,
    pitch,
    num_rows,
    num_queries,
    most_keys,
    max_budget,
    pinned,
    KEEP_OBSERVATION: tl.constexpr,
    SCORE_ALL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK requests."""
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = r < num_requests
    end = tl.load(cu_seqlens_ptr + r + 1, mask=inside, other=0)
    begin = tl.load(cu_seqlens_ptr + r, mask=inside, other=0)
    end = tl.minimum(tl.maximum(end, 0), num_queries)
    begin = tl.minimum(tl.maximum(begin, 0), end)
    length = tl.load(seq_lens_ptr + r, mask=inside, other=0)
    length = tl.minimum(tl.maximum(length, 0), most_keys)
    rows = tl.minimum(tl.minimum(end - begin, num_rows), length)
    prompt = length - rows
    budget = tl.zeros([BLOCK], tl.int32) + max_budget
    if budgets_ptr is not None:
        budget = tl.minimum(tl.load(budgets_ptr + r, mask=inside, other=0), max_budget)
    appended = tl.zeros([BLOCK], tl.int32)
    if KEEP_OBSERVATION:
        appended = rows
    entries = prompt + appended
    everything = entries <= budget
    # A budget that cannot hold what is pinned counts as 0.
    chosen = (budget > 0) & (budget >= pinned + appended) & (rows > 0) & (entries > budget)
    count = tl.where(everything, prompt, tl.where(chosen, budget - appended, 0))
    scored = rows
    if not SCORE_ALL:
        scored = tl.where(chosen, rows, 0)
    tl.store(out_plan_ptr + r, end - rows, mask=inside)
    tl.store(out_plan_ptr + pitch + r, scored, mask=inside)
    tl.store(out_plan_ptr + 2 * pitch + r, prompt, mask=inside)
    tl.store(out_plan_ptr + 3 * pitch + r, count, mask=inside)
    appended = tl.where(everything | chosen, appended, 0)
    tl.store(out_plan_ptr + 4 * pitch + r, appended, mask=inside)
    # A request that takes no part drops nothing, its own queries included.
    kept = tl.where(everything & (budget > 0), entries, length)
    tl.store(out_kept_lens_ptr + r, tl.where(chosen, budget, kept), mask=inside)


@dataclass(frozen=True)
class Plan:
    """What a paged batch's lengths mean, each int32 [R] on the device."""

    first_rows: Tensor  # of the observation rows, among the packed queries
    rows: Tensor  # L_r; 0 for requests that are not scored
    prompts: Tensor  # N_r
    counts: Tensor  # prompt positions that are kept
    appended: Tensor  # observation rows that are kept


def plan(
    cu_seqlens_q: Tensor,  # [R + 1] int32
    seq_lens: Tensor,  # [R] int32
    num_rows: int,
    *,
    num_queries: int,
    most_keys: int,
    selection: PagedSelection | None = None,
    kept_lens: Tensor | None = None,  # [R] int32, written
) -> Plan:
    """The plan of one op; without a ``selection`` every request is scored."""
    num_requests = seq_lens.shape[0]
    # Every field begins at 16 bytes: Triton compiles a kernel anew for other pointers.
    pitch = ceil_div(num_requests, 4) * 4
    fields = torch.empty((5, pitch), dtype=torch.int32, device=seq_lens.device)
    budgets, max_budget, pinned, keep_observation = None, 0, 0, False
    if selection is not None:
        budgets, max_budget = selection.budgets, selection.max_budget
        pinned = selection.num_sink + selection.num_recent
        keep_observation = selection.keep_observation
    block = 256
    launch(
        plan_kernel,
        (ceil_div(num_requests, block),),
        seq_lens,
        cu_seqlens_ptr=cu_seqlens_q.contiguous(),
        seq_lens_ptr=seq_lens.contiguous(),
        budgets_ptr=None if budgets is None else budgets.contiguous(),
        out_plan_ptr=fields,
        out_kept_lens_ptr=torch.empty_like(seq_lens) if kept_lens is None else kept_lens,
        num_requests=num_requests,
        pitch=pitch,
        num_rows=num_rows,
        num_queries=num_queries,
        most_keys=most_keys,
        max_budget=max_budget,
        pinned=pinned,
        KEEP_OBSERVATION=keep_observation,
        SCORE_ALL=selection is None,
        BLOCK=block,
        num_warps=4,
    )
    first_rows, rows, prompts, counts, appended = fields[:, :num_requests].unbind(0)
    return Plan(first_rows, rows, prompts, counts, appended)
