"""Fake kernels: what each op returns, from shapes alone (torch.compile, torch.export, meta).

Sizes stay symbolic: ``min(budget, N)`` is an expression, not a guard on N.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import register_fake

from ._checks import Checks, Size


def _scores_like(query: Tensor, key: Tensor, num_prompt: Size) -> Tensor:
    """[B, Hkv, N] float32 on the query's device."""
    return query.new_empty((query.shape[0], key.shape[1], num_prompt), dtype=torch.float32)


def _check_scoring(
    checks: Checks,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    lse: Tensor | None,
    leftpad_k: Tensor | None,
    seqused_k: Tensor | None,
    scale: float | None,
) -> None:
    checks.attention_inputs(query, key, value)
    checks.float_tensor("lse", lse, query.shape[:3], query)
    checks.lengths(leftpad_k, seqused_k, "query", query)
    checks.scale(scale)


@register_fake("lookaheadkv::lookahead_attention")
def lookahead_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """out like query (contiguous), lse [B, Hq, L] float32, scores [B, Hkv, N] float32."""
    checks = Checks("lookahead_attention")
    _check_scoring(checks, query, key, value, None, leftpad_k, seqused_k, scale)
    return (
        query.new_empty(query.shape),
        query.new_empty(query.shape[:3], dtype=torch.float32),
        _scores_like(query, key, key.shape[2] - query.shape[2]),
    )


@register_fake("lookaheadkv::column_scores")
def column_scores(
    query: Tensor,
    key: Tensor,
    lse: Tensor | None = None,
    *,
    scale: float | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> Tensor:
    """scores [B, Hkv, N] float32."""
    checks = Checks("column_scores")
    _check_scoring(checks, query, key, None, lse, leftpad_k, seqused_k, scale)
    return _scores_like(query, key, key.shape[2] - query.shape[2])


@register_fake("lookaheadkv::column_scores_backward")
def column_scores_backward(
    grad_scores: Tensor,
    query: Tensor,
    key: Tensor,
    lse: Tensor | None = None,
    *,
    scale: float | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """grad_query and grad_key, contiguous, in the inputs' dtype."""
    checks = Checks("column_scores_backward")
    _check_scoring(checks, query, key, None, lse, leftpad_k, seqused_k, scale)
    num_prompt = key.shape[2] - query.shape[2]
    checks.float_tensor("grad_scores", grad_scores, (*key.shape[:2], num_prompt), query)
    return query.new_empty(query.shape), key.new_empty(key.shape)


@register_fake("lookaheadkv::prefill_attention")
def prefill_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_lookahead: int,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """out like query (contiguous), lse [B, Hq, S] float32, scores [B, Hkv, N] float32."""
    checks = Checks("prefill_attention")
    checks.prefill_inputs(query, key, value, num_lookahead)
    checks.scale(scale)
    return (
        query.new_empty(query.shape),
        query.new_empty(query.shape[:3], dtype=torch.float32),
        _scores_like(query, key, query.shape[2] - num_lookahead),
    )


@register_fake("lookaheadkv::select")
def select(
    scores: Tensor,
    budget: int,
    *,
    pool_kernel: int = 7,
    num_sink: int = 0,
    num_recent: int = 0,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> Tensor:
    """indices [B, Hkv, min(budget, N)] int32."""
    checks = Checks("select")
    checks.scores_input(scores)
    checks.lengths(leftpad_k, seqused_k, "scores", scores)
    checks.budget(budget, pool_kernel, num_sink, num_recent)
    batch, heads, num_prompt = scores.shape
    return scores.new_empty((batch, heads, torch.sym_min(budget, num_prompt)), dtype=torch.int32)


@register_fake("lookaheadkv::gather_kv")
def gather_kv(key: Tensor, value: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """key and value [B, Hkv, K, D], contiguous."""
    Checks("gather_kv").gather_inputs(key, value, indices)
    shape = (*key.shape[:2], indices.shape[2], key.shape[3])
    return key.new_empty(shape), value.new_empty(shape)


@register_fake("lookaheadkv::score_and_evict")
def score_and_evict(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    budget: int,
    *,
    lse: Tensor | None = None,
    scale: float | None = None,
    pool_kernel: int = 7,
    num_sink: int = 0,
    num_recent: int = 0,
    keep_observation: bool = False,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """key and value [B, Hkv, K, D], indices [B, Hkv, K] int32, scores [B, Hkv, N] float32."""
    checks = Checks("score_and_evict")
    _check_scoring(checks, query, key, value, lse, leftpad_k, seqused_k, scale)
    rows = query.shape[2]
    num_prompt = key.shape[2] - rows
    checks.budget(budget, pool_kernel, num_sink, num_recent, rows if keep_observation else None)
    if keep_observation:
        num_kept = torch.sym_min(budget - rows, num_prompt) + rows
    else:
        num_kept = torch.sym_min(budget, num_prompt)
    shape = (*key.shape[:2], num_kept, key.shape[3])
    return (
        key.new_empty(shape),
        value.new_empty(shape),
        key.new_empty(shape[:3], dtype=torch.int32),
        _scores_like(query, key, num_prompt),
    )
