"""The front half of the ops on paged caches: check, make the empty results. See _outputs.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import Size
from ._checks_paged import Compaction, PagedChecks, PagedInputs, PagedSelection
from ._outputs import front_of


def _new_scores(inputs: PagedInputs) -> Tensor:
    """[R, Hkv, max_seq_len] float32."""
    shape = (inputs.num_requests, inputs.kv_heads, inputs.max_seq_len)
    return inputs.query.new_empty(shape, dtype=torch.float32)


def _new_kept(
    like: Tensor, num_requests: Size, kv_heads: Size, selection: PagedSelection
) -> tuple[Tensor, Tensor]:
    """indices [R, Hkv or 1, max_budget] and kept_lens [R], int32."""
    heads = selection.heads(kv_heads)
    return (
        like.new_empty((num_requests, heads, selection.max_budget), dtype=torch.int32),
        like.new_empty((num_requests,), dtype=torch.int32),
    )


# Arguments are grouped by name, out of locals(): a list of them here would be the op's once more,
# and its integers could change places unseen.


@front_of("floats")
def paged_column_scores(
    query: Tensor,
    key_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    num_rows: int,
    max_seq_len: int,
    *,
    lse: Tensor | None = None,
    scale: float | None = None,
    k_scale: Tensor | None = None,
) -> tuple[PagedInputs, Tensor]:
    """scores [R, Hkv, max_seq_len] float32."""
    inputs = PagedInputs.of(locals())
    PagedChecks("paged_column_scores").paged_scoring(inputs)
    return inputs, _new_scores(inputs)


@front_of("indices")
def paged_select(
    scores: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    num_rows: int,
    max_budget: int,
    *,
    budgets: Tensor | None = None,
    pool_kernel: int = 7,
    num_sink: int = 0,
    num_recent: int = 0,
    keep_observation: bool = False,
    head_reduction: str = "none",
) -> tuple[Tensor, Tensor, Tensor, PagedSelection, tuple[Tensor, Tensor]]:
    """indices [R, Hkv or 1, max_budget] and kept_lens [R], int32."""
    selection = PagedSelection.of(locals())
    checks = PagedChecks("paged_select")
    checks.paged_scores(scores, cu_seqlens_q, seq_lens, num_rows)
    checks.selection(selection, scores.shape[0], "scores", scores)
    kept = _new_kept(scores, scores.shape[0], scores.shape[1], selection)
    return scores, cu_seqlens_q, seq_lens, selection, kept


@front_of("floats")
def paged_score_and_select(
    query: Tensor,
    key_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    num_rows: int,
    max_seq_len: int,
    max_budget: int,
    *,
    budgets: Tensor | None = None,
    lse: Tensor | None = None,
    scale: float | None = None,
    k_scale: Tensor | None = None,
    pool_kernel: int = 7,
    num_sink: int = 0,
    num_recent: int = 0,
    keep_observation: bool = False,
    head_reduction: str = "none",
) -> tuple[PagedInputs, PagedSelection, tuple[Tensor, Tensor, Tensor]]:
    """indices and kept_lens as of paged_select, scores [R, Hkv, max_seq_len] float32."""
    inputs, selection = PagedInputs.of(locals()), PagedSelection.of(locals())
    checks = PagedChecks("paged_score_and_select")
    checks.paged_scoring(inputs)
    checks.selection(selection, inputs.num_requests, "query", query)
    kept = _new_kept(query, inputs.num_requests, inputs.kv_heads, selection)
    return inputs, selection, (*kept, _new_scores(inputs))


@front_of("nothing")
def paged_score_and_select_out(
    query: Tensor,
    key_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    num_rows: int,
    max_budget: int,
    *,
    indices: Tensor,
    kept_lens: Tensor,
    scores: Tensor,
    budgets: Tensor | None = None,
    lse: Tensor | None = None,
    scale: float | None = None,
    k_scale: Tensor | None = None,
    pool_kernel: int = 7,
    num_sink: int = 0,
    num_recent: int = 0,
    keep_observation: bool = False,
    head_reduction: str = "none",
) -> tuple[PagedInputs, PagedSelection, tuple[Tensor, Tensor, Tensor]]:
    """indices, kept_lens and scores are the caller's."""
    max_seq_len = scores.shape[-1] if scores.dim() == 3 else 0
    inputs = PagedInputs.of(locals())
    selection = PagedSelection.of(locals())
    checks = PagedChecks("paged_score_and_select_out")
    checks.paged_scoring(inputs)
    checks.selection(selection, inputs.num_requests, "query", query)
    checks.outputs(inputs, selection, indices, kept_lens, scores)
    return inputs, selection, (indices, kept_lens, scores)


@front_of("nothing")
def compact_kv_cache(
    caches: Sequence[Tensor],
    indices: Tensor,
    kept_lens: Tensor,
    src_block_table: Tensor,
    dst_block_table: Tensor | None = None,
    *,
    dst_start: Tensor | None = None,
) -> tuple[Compaction]:
    """caches are the caller's."""
    compaction = Compaction(caches, indices, kept_lens, src_block_table, dst_block_table, dst_start)
    PagedChecks("compact_kv_cache").compaction(compaction)
    return (compaction,)
