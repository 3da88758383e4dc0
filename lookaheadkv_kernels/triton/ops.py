"""The torch ops on Triton: what _outputs.py has checked is computed into its results.

See lookaheadkv_kernels/ops.py for the meaning. Nothing here waits for the device.
"""

from __future__ import annotations

from torch import Tensor

from .._checks import Inputs, Options
from . import attention, gather, prefill, scores_backward
from . import scores as score_room
from . import select as select_room
from .problem import Problem, Selection, contiguous


def _score(problem: Problem, lse: Tensor | None, scores: Tensor) -> None:
    """Column scores by the log-sum-exp given, or by one that is computed."""
    score_room.column_scores(problem, _lse(problem, lse), scores)


def _lse(problem: Problem, lse: Tensor | None) -> Tensor:
    """The rows' log-sum-exp [B, Hq, L], contiguous."""
    return attention.lse_of(problem) if lse is None else lse.contiguous()


def lookahead_attention(inputs: Inputs, results: tuple[Tensor, Tensor, Tensor]) -> None:
    """Writes out, lse and scores."""
    out, lse, scores = results
    problem = Problem.of(inputs)
    attention.attention(problem, out, lse)
    score_room.column_scores(problem, lse, scores)


def column_scores(inputs: Inputs, scores: Tensor) -> None:
    """Writes scores."""
    _score(Problem.of(inputs), inputs.lse, scores)


def column_scores_backward(
    grad_scores: Tensor, inputs: Inputs, results: tuple[Tensor, Tensor]
) -> None:
    """Writes grad_query and grad_key."""
    problem = Problem.of(inputs)
    scores_backward.column_scores_backward(
        problem, grad_scores.contiguous(), _lse(problem, inputs.lse), *results
    )


def prefill_attention(
    inputs: Inputs, num_lookahead: int, results: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Writes out, lse and scores."""
    prefill.prefill_attention(Problem.of(inputs, num_lookahead), *results)


def select(
    scores: Tensor,
    options: Options,
    leftpad_k: Tensor | None,
    seqused_k: Tensor | None,
    indices: Tensor,
) -> None:
    """Writes indices."""
    selection = Selection(options.budget, options.pool_kernel, options.num_sink, options.num_recent)
    select_room.select(scores, selection, contiguous(leftpad_k), contiguous(seqused_k), indices)


def gather_kv(key: Tensor, value: Tensor, indices: Tensor, results: tuple[Tensor, Tensor]) -> None:
    """Writes key and value."""
    gather.gather_kv(key, value, indices.contiguous(), *results)


def score_and_evict(
    inputs: Inputs, options: Options, results: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    """Writes key, value, indices and scores."""
    out_key, out_value, indices, scores = results
    problem = Problem.of(inputs)
    _score(problem, inputs.lse, scores)
    appended = problem.num_rows if options.keep_observation else 0
    selection = Selection(
        options.budget - appended,
        options.pool_kernel,
        options.num_sink,
        options.num_recent,
        appended,
    )
    select_room.select(scores, selection, problem.leftpad_k, problem.seqused_k, indices)
    assert inputs.value is not None
    gather.gather_kv(inputs.key, inputs.value, indices, out_key, out_value)
