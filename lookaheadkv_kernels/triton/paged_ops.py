"""The torch ops on paged caches on Triton; see lookaheadkv_kernels/paged.py for the meaning.

Nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from .._checks_paged import PagedChecks
from .._fake_paged import new_kept, new_scores
from .compact import compact_kv_cache as launch_compact_kv_cache
from .paged import plan
from .paged_attention import PagedProblem
from .paged_scores import paged_column_scores as launch_paged_column_scores
from .paged_select import paged_select as launch_paged_select
from .paged_values import CompactionValues, check_batch, check_blocks, check_budgets
from .values import check_aligned


def _scale(query: Tensor, scale: float | None) -> float:
    return 1.0 / math.sqrt(query.shape[2]) if scale is None else scale


def _most_keys(key_cache: Tensor, block_table: Tensor, max_seq_len: int) -> int:
    """What a request's length is clamped to."""
    if key_cache.shape[0] == 0:
        return 0
    return min(max_seq_len, block_table.shape[1] * key_cache.shape[1])


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
) -> Tensor:
    """Scores [R, Hkv, max_seq_len]."""
    checks = PagedChecks("paged_column_scores")
    checks.scoring(
        query,
        key_cache,
        block_table,
        cu_seqlens_q,
        seq_lens,
        num_rows,
        max_seq_len,
        lse,
        scale,
        k_scale,
    )
    check_aligned(
        checks,
        query=query,
        key_cache=key_cache,
        block_table=block_table,
        cu_seqlens_q=cu_seqlens_q,
        seq_lens=seq_lens,
        lse=lse,
        k_scale=k_scale,
    )
    check_batch(checks, cu_seqlens_q, seq_lens, num_rows, max_seq_len, query.shape[0])
    check_blocks(checks, block_table, seq_lens, *key_cache.shape[:2])
    lengths = plan(
        cu_seqlens_q.contiguous(),
        seq_lens.contiguous(),
        None,
        num_rows,
        query.shape[0],
        _most_keys(key_cache, block_table, max_seq_len),
        score_all=True,
    )
    problem = PagedProblem(
        query,
        key_cache,
        block_table.contiguous(),
        k_scale,
        lengths,
        num_rows,
        _scale(query, scale),
    )
    scores = new_scores(query, block_table.shape[0], key_cache.shape[2], max_seq_len)
    launch_paged_column_scores(problem, lse, scores)
    return scores


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
) -> tuple[Tensor, Tensor]:
    """(indices, kept_lens)."""
    checks = PagedChecks("paged_select")
    checks.paged_scores(scores, cu_seqlens_q, seq_lens, num_rows)
    checks.selection(
        num_rows,
        max_budget,
        budgets,
        pool_kernel,
        num_sink,
        num_recent,
        keep_observation,
        head_reduction,
        scores.shape[0],
        "scores",
        scores,
    )
    check_aligned(
        checks, scores=scores, cu_seqlens_q=cu_seqlens_q, seq_lens=seq_lens, budgets=budgets
    )
    requests, kv_heads, max_seq_len = scores.shape
    pinned = num_sink + num_recent
    check_batch(checks, cu_seqlens_q, seq_lens, num_rows, max_seq_len, None)
    check_budgets(
        checks, budgets, cu_seqlens_q, seq_lens, num_rows, max_budget, pinned, keep_observation
    )
    indices, kept_lens = new_kept(scores, requests, kv_heads, max_budget, head_reduction)
    lengths = plan(
        cu_seqlens_q.contiguous(),
        seq_lens.contiguous(),
        None if budgets is None else budgets.contiguous(),
        num_rows,
        2**31 - 1,
        max_seq_len,
        max_budget=max_budget,
        pinned=pinned,
        keep_observation=keep_observation,
        kept_lens=kept_lens,
    )
    launch_paged_select(scores, lengths, head_reduction, pool_kernel, num_sink, num_recent, indices)
    return indices, kept_lens


def _score_and_select(
    checks: PagedChecks,
    query: Tensor,
    key_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    num_rows: int,
    max_budget: int,
    outputs: tuple[Tensor, Tensor, Tensor] | None,
    max_seq_len: int,
    budgets: Tensor | None,
    lse: Tensor | None,
    scale: float | None,
    k_scale: Tensor | None,
    pool_kernel: int,
    num_sink: int,
    num_recent: int,
    keep_observation: bool,
    head_reduction: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Into ``outputs`` (indices, kept_lens, scores), or new ones."""
    checks.scoring(
        query,
        key_cache,
        block_table,
        cu_seqlens_q,
        seq_lens,
        num_rows,
        max_seq_len,
        lse,
        scale,
        k_scale,
    )
    requests, kv_heads = block_table.shape[0], key_cache.shape[2]
    checks.selection(
        num_rows,
        max_budget,
        budgets,
        pool_kernel,
        num_sink,
        num_recent,
        keep_observation,
        head_reduction,
        requests,
        "query",
        query,
    )
    if outputs is not None:
        indices, kept_lens, scores = outputs
        checks.outputs(
            indices,
            kept_lens,
            scores,
            requests,
            kv_heads,
            max_budget,
            head_reduction,
            query,
        )
    check_aligned(
        checks,
        query=query,
        key_cache=key_cache,
        block_table=block_table,
        cu_seqlens_q=cu_seqlens_q,
        seq_lens=seq_lens,
        lse=lse,
        k_scale=k_scale,
        budgets=budgets,
    )
    pinned = num_sink + num_recent
    check_batch(checks, cu_seqlens_q, seq_lens, num_rows, max_seq_len, query.shape[0])
    check_blocks(checks, block_table, seq_lens, *key_cache.shape[:2])
    check_budgets(
        checks, budgets, cu_seqlens_q, seq_lens, num_rows, max_budget, pinned, keep_observation
    )
    if outputs is None:
        indices, kept_lens = new_kept(query, requests, kv_heads, max_budget, head_reduction)
        scores = new_scores(query, requests, kv_heads, max_seq_len)
    lengths = plan(
        cu_seqlens_q.contiguous(),
        seq_lens.contiguous(),
        None if budgets is None else budgets.contiguous(),
        num_rows,
        query.shape[0],
        _most_keys(key_cache, block_table, max_seq_len),
        max_budget=max_budget,
        pinned=pinned,
        keep_observation=keep_observation,
        kept_lens=kept_lens,
    )
    problem = PagedProblem(
        query,
        key_cache,
        block_table.contiguous(),
        k_scale,
        lengths,
        num_rows,
        _scale(query, scale),
    )
    launch_paged_column_scores(problem, lse, scores)
    launch_paged_select(scores, lengths, head_reduction, pool_kernel, num_sink, num_recent, indices)
    return indices, kept_lens, scores


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
) -> tuple[Tensor, Tensor, Tensor]:
    """(indices, kept_lens, scores)."""
    return _score_and_select(
        PagedChecks("paged_score_and_select"),
        query,
        key_cache,
        block_table,
        cu_seqlens_q,
        seq_lens,
        num_rows,
        max_budget,
        None,
        max_seq_len,
        budgets,
        lse,
        scale,
        k_scale,
        pool_kernel,
        num_sink,
        num_recent,
        keep_observation,
        head_reduction,
    )


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
) -> None:
    """Writes indices, kept_lens and scores."""
    _score_and_select(
        PagedChecks("paged_score_and_select_out"),
        query,
        key_cache,
        block_table,
        cu_seqlens_q,
        seq_lens,
        num_rows,
        max_budget,
        (indices, kept_lens, scores),
        scores.shape[-1] if scores.dim() == 3 else 0,
        budgets,
        lse,
        scale,
        k_scale,
        pool_kernel,
        num_sink,
        num_recent,
        keep_observation,
        head_reduction,
    )


def compact_kv_cache(
    caches: Sequence[Tensor],
    indices: Tensor,
    kept_lens: Tensor,
    src_block_table: Tensor,
    dst_block_table: Tensor | None = None,
    *,
    dst_start: Tensor | None = None,
) -> None:
    """Writes caches."""
    checks = PagedChecks("compact_kv_cache")
    checks.compaction(caches, indices, kept_lens, src_block_table, dst_block_table, dst_start)
    check_aligned(
        checks,
        **{f"caches[{at}]": cache for at, cache in enumerate(caches)},
        indices=indices,
        kept_lens=kept_lens,
        src_block_table=src_block_table,
        dst_block_table=dst_block_table,
        dst_start=dst_start,
    )
    target = src_block_table if dst_block_table is None else dst_block_table
    if indices.device.type == "cpu":
        CompactionValues(
            checks,
            indices,
            kept_lens,
            src_block_table,
            target,
            dst_start,
            *caches[0].shape[:2],
        ).check()
    source = src_block_table.contiguous()
    launch_compact_kv_cache(
        caches,
        indices.contiguous(),
        kept_lens.contiguous(),
        source,
        source if dst_block_table is None else dst_block_table.contiguous(),
        None if dst_start is None else dst_start.contiguous(),
    )
