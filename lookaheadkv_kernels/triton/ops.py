"""The torch ops on Triton: check, allocate, launch. See lookaheadkv_kernels/ops.py for the meaning.

The twin of csrc/cpu/ops.cpp. Nothing here waits for the device.
"""

from __future__ import annotations

import math

from torch import Tensor

from .._checks import Checks
from .attention import Problem, attention
from .gather import gather_kv as launch_gather_kv
from .prefill import prefill_attention as launch_prefill_attention
from .scores import column_scores as launch_column_scores
from .scores_backward import column_scores_backward as launch_column_scores_backward
from .select import Selection
from .select import select as launch_select
from .values import check_aligned, check_indices, check_lengths


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _problem(
    checks: Checks,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    lse: Tensor | None,
    scale: float | None,
    leftpad_k: Tensor | None,
    seqused_k: Tensor | None,
) -> Problem:
    """The validated sizes and padding of one scoring call."""
    checks.attention_inputs(query, key, value)
    check_aligned(checks, query=query, key=key, value=value)
    checks.float_tensor("lse", lse, query.shape[:3], query)
    check_aligned(checks, lse=lse)
    checks.lengths(leftpad_k, seqused_k, "query", query)
    check_aligned(checks, leftpad_k=leftpad_k, seqused_k=seqused_k)
    batch, heads, rows, head_dim = query.shape
    num_prompt = key.shape[2] - rows
    check_lengths(checks, leftpad_k, seqused_k, num_prompt)
    checks.scale(scale)
    return Problem(
        batch,
        heads,
        key.shape[1],
        rows,
        num_prompt,
        head_dim,
        1.0 / math.sqrt(head_dim) if scale is None else scale,
        _contiguous(leftpad_k),
        _contiguous(seqused_k),
    )


def _lse(problem: Problem, query: Tensor, key: Tensor, lse: Tensor | None) -> Tensor:
    """The log-sum-exp given, or computed."""
    return attention(problem, query, key, None)[1] if lse is None else lse.contiguous()


def lookahead_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, lse, scores)."""
    checks = Checks("lookahead_attention")
    problem = _problem(checks, query, key, value, None, scale, leftpad_k, seqused_k)
    out, lse = attention(problem, query, key, value)
    assert out is not None
    return out, lse, launch_column_scores(problem, query, key, lse)


def column_scores(
    query: Tensor,
    key: Tensor,
    lse: Tensor | None = None,
    *,
    scale: float | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> Tensor:
    """Scores [B, Hkv, N]."""
    checks = Checks("column_scores")
    problem = _problem(checks, query, key, None, lse, scale, leftpad_k, seqused_k)
    return launch_column_scores(problem, query, key, _lse(problem, query, key, lse))


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
    """(grad_query, grad_key)."""
    checks = Checks("column_scores_backward")
    problem = _problem(checks, query, key, None, lse, scale, leftpad_k, seqused_k)
    shape = (problem.batch, problem.kv_heads, problem.num_prompt)
    checks.float_tensor("grad_scores", grad_scores, shape, query)
    check_aligned(checks, grad_scores=grad_scores)
    return launch_column_scores_backward(
        problem, grad_scores.contiguous(), query, key, _lse(problem, query, key, lse)
    )


def prefill_attention(
    query: Tensor, key: Tensor, value: Tensor, num_lookahead: int, *, scale: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, lse, scores)."""
    checks = Checks("prefill_attention")
    checks.prefill_inputs(query, key, value, num_lookahead)
    check_aligned(checks, query=query, key=key, value=value)
    checks.scale(scale)
    batch, heads, positions, head_dim = query.shape
    problem = Problem(
        batch,
        heads,
        key.shape[1],
        num_lookahead,
        positions - num_lookahead,
        head_dim,
        1.0 / math.sqrt(head_dim) if scale is None else scale,
        None,
        None,
    )
    return launch_prefill_attention(problem, query, key, value)


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
    """Indices [B, Hkv, min(budget, N)]."""
    checks = Checks("select")
    checks.scores_input(scores)
    checks.lengths(leftpad_k, seqused_k, "scores", scores)
    check_aligned(checks, scores=scores, leftpad_k=leftpad_k, seqused_k=seqused_k)
    check_lengths(checks, leftpad_k, seqused_k, scores.shape[2])
    checks.budget(budget, pool_kernel, num_sink, num_recent)
    selection = Selection(budget, pool_kernel, num_sink, num_recent)
    return launch_select(scores, selection, _contiguous(leftpad_k), _contiguous(seqused_k))


def gather_kv(key: Tensor, value: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """(key, value) [B, Hkv, K, D]."""
    checks = Checks("gather_kv")
    checks.gather_inputs(key, value, indices)
    check_aligned(checks, key=key, value=value, indices=indices)
    check_indices(checks, indices, key.shape[2])
    return launch_gather_kv(key, value, indices.contiguous())


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
    """(key, value, indices, scores)."""
    checks = Checks("score_and_evict")
    problem = _problem(checks, query, key, value, lse, scale, leftpad_k, seqused_k)
    appended = problem.num_rows if keep_observation else 0
    checks.budget(budget, pool_kernel, num_sink, num_recent, appended if appended else None)
    scores = launch_column_scores(problem, query, key, _lse(problem, query, key, lse))
    selection = Selection(budget - appended, pool_kernel, num_sink, num_recent, appended)
    indices = launch_select(scores, selection, problem.leftpad_k, problem.seqused_k)
    return (*launch_gather_kv(key, value, indices), indices, scores)
