"""Fake kernels of the ops on paged caches; see _fake.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import register_fake

from ._checks import Size
from ._checks_paged import PagedChecks


def new_scores(like: Tensor, num_requests: Size, kv_heads: Size, max_seq_len: Size) -> Tensor:
    """[R, Hkv, max_seq_len] float32."""
    return like.new_empty((num_requests, kv_heads, max_seq_len), dtype=torch.float32)


def new_kept(
    like: Tensor, num_requests: Size, kv_heads: Size, max_budget: int, head_reduction: str
) -> tuple[Tensor, Tensor]:
    """indices [R, Hkv or 1, max_budget] and kept_lens [R], int32."""
    heads = kv_heads if head_reduction == "none" else 1
    return (
        like.new_empty((num_requests, heads, max_budget), dtype=torch.int32),
        like.new_empty((num_requests,), dtype=torch.int32),
    )


@register_fake("lookaheadkv::paged_column_scores")
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
    """scores [R, Hkv, max_seq_len] float32."""
    PagedChecks("paged_column_scores").scoring(
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
    return new_scores(query, block_table.shape[0], key_cache.shape[2], max_seq_len)


@register_fake("lookaheadkv::paged_select")
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
    """indices [R, Hkv or 1, max_budget] and kept_lens [R], int32."""
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
    return new_kept(scores, scores.shape[0], scores.shape[1], max_budget, head_reduction)


@register_fake("lookaheadkv::paged_score_and_select")
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
    """indices and kept_lens as of paged_select, scores [R, Hkv, max_seq_len] float32."""
    checks = PagedChecks("paged_score_and_select")
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
    return (
        *new_kept(query, requests, kv_heads, max_budget, head_reduction),
        new_scores(query, requests, kv_heads, max_seq_len),
    )


@register_fake("lookaheadkv::paged_score_and_select_out")
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
    checks = PagedChecks("paged_score_and_select_out")
    checks.scoring(
        query,
        key_cache,
        block_table,
        cu_seqlens_q,
        seq_lens,
        num_rows,
        scores.shape[-1] if scores.dim() == 3 else 0,
        lse,
        scale,
        k_scale,
    )
    requests = block_table.shape[0]
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
    checks.outputs(
        indices,
        kept_lens,
        scores,
        requests,
        key_cache.shape[2],
        max_budget,
        head_reduction,
        query,
    )


@register_fake("lookaheadkv::compact_kv_cache")
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
    PagedChecks("compact_kv_cache").compaction(
        caches, indices, kept_lens, src_block_table, dst_block_table, dst_start
    )
