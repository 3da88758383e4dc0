"""One full check of a scoring problem: every op that scores it, against float64 and eager code."""

from __future__ import annotations

from typing import Any

import torch
from support.helpers import Inputs, assert_accurate, assert_bitwise
from torch import Tensor

import lookaheadkv_kernels as lk
from bench.peers.eager import eager_attention, eager_scores, repeat_kv
from lookaheadkv_kernels import python_ref


def eager_lse(query: Tensor, key: Tensor) -> Tensor:
    """Log-sum-exp [B, Hq, L] of logits that eager code holds in the inputs' dtype."""
    rows = query.shape[2]
    keys = repeat_kv(key, query.shape[1] // key.shape[1])
    logits = torch.matmul(query, keys.transpose(2, 3)) / query.shape[3] ** 0.5
    hidden = torch.ones(rows, rows, dtype=torch.bool, device=query.device).triu(1)
    logits[..., -rows:].masked_fill_(hidden, -torch.inf)
    return logits.float().logsumexp(-1)


def check_attention(inputs: Inputs) -> lk.ops.Attention:
    """lookahead_attention: out, lse and scores."""
    query, key, _ = inputs
    result = lk.lookahead_attention(*inputs)
    reference = python_ref.lookahead_attention(*inputs.double())
    eager = (eager_attention(*inputs), eager_lse(query, key), eager_scores(query, key))
    assert result.out.dtype == query.dtype and result.out.is_contiguous()
    assert result.lse.dtype == result.scores.dtype == torch.float32
    for actual, plain, exact in zip(result, eager, reference, strict=True):
        assert_accurate(actual, plain, exact, query.dtype)
    return result


def check_scores(inputs: Inputs, lse: Tensor | None = None) -> Tensor:
    """column_scores, with the log-sum-exp given or not."""
    query, key, _ = inputs
    scores = lk.column_scores(query, key, lse)
    reference = python_ref.column_scores(query.double(), key.double())
    assert_accurate(scores, eager_scores(query, key), reference, query.dtype)
    return scores


def check_evicted(inputs: Inputs, result: lk.ops.Evicted, budget: int, **options: Any) -> None:
    """Indices are the reference's choice from the op's own scores; key and value their rows."""
    rows, prompt = inputs.query.shape[2], inputs.num_prompt
    keep_observation = options.pop("keep_observation", False)
    indices = python_ref.select(
        result.scores, budget - rows if keep_observation else budget, **options
    )
    if keep_observation:
        indices = python_ref.evict.append_observation(indices, prompt, rows)
    assert_bitwise(result.indices, indices)
    assert_bitwise(
        (result.key, result.value), python_ref.gather_kv(inputs.key, inputs.value, indices)
    )
    assert result.key.is_contiguous() and result.value.is_contiguous()


def check_everything(inputs: Inputs, budget: int) -> None:
    """All scoring ops on one problem, and that they agree with each other."""
    attention = check_attention(inputs)
    check_scores(inputs)
    check_scores(inputs, attention.lse)
    evicted = lk.score_and_evict(*inputs, budget)
    check_evicted(inputs, evicted, budget)
    assert_bitwise(evicted.scores, lk.column_scores(inputs.query, inputs.key))
    given = lk.score_and_evict(*inputs, budget, lse=attention.lse)
    check_evicted(inputs, given, budget)
    assert_bitwise(given.scores, lk.column_scores(inputs.query, inputs.key, attention.lse))
