"""The oracle itself: closed forms, hand-computed cases, and gradients by finite differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.helpers import DTYPES, Inputs, assert_fp32_close, lengths, make_inputs
from torch import Tensor

from lookaheadkv_kernels import python_ref


def zero_query(inputs: Inputs) -> Inputs:
    return inputs._replace(query=torch.zeros_like(inputs.query))


@pytest.mark.parametrize("prompt, rows", [(0, 1), (1, 1), (7, 3), (100, 32)])
def test_uniform_attention(prompt, rows):
    """With q = 0 row i spreads 1 / (N + i + 1) over each key it sees."""
    inputs = zero_query(make_inputs(prompt=prompt, rows=rows).double())
    out, lse, scores = python_ref.lookahead_attention(*inputs)
    seen = prompt + 1 + torch.arange(rows, dtype=torch.float64)
    torch.testing.assert_close(scores, (1 / seen).mean().expand_as(scores))
    torch.testing.assert_close(lse, seen.log().expand_as(lse))
    means = inputs.value.cumsum(2)[:, :, prompt:] / seen[:, None]
    torch.testing.assert_close(out, means.repeat_interleave(2, dim=1))


def test_one_hot_keys():
    """Keys that are scaled unit vectors put each row on exactly one of them."""
    rows, dim = 4, 8
    key = torch.cat([torch.eye(dim), torch.zeros(rows, dim)])[None, None].double()
    query = torch.eye(dim)[[3, 3, 5, 0]][None, None].double()
    scores = python_ref.column_scores(query, key, scale=1e4)
    expected = torch.tensor([1, 0, 0, 2, 0, 1, 0, 0], dtype=torch.float64) / rows
    torch.testing.assert_close(scores[0, 0], expected)


def test_scores_sum_to_the_prompt_mass():
    """Over the prompt the scores sum to 1 minus what the rows give to the observation keys."""
    inputs = make_inputs(batch=2, heads=6, prompt=50).double()
    probs = python_ref.attention_probabilities(inputs.query, inputs.key)
    torch.testing.assert_close(probs.sum(-1), torch.ones_like(probs[..., 0]))
    own = probs[..., 50:].sum(-1).reshape(2, 2, -1).mean(-1)
    scores = python_ref.column_scores(inputs.query, inputs.key)
    torch.testing.assert_close(scores.sum(-1), 1 - own)


def test_attention_is_causal_at_the_bottom_right():
    inputs = make_inputs(prompt=10, rows=4)
    probs = python_ref.attention_probabilities(inputs.query, inputs.key)
    for i in range(4):
        assert (probs[:, :, i, : 11 + i] > 0).all()
        assert (probs[:, :, i, 11 + i :] == 0).all()


def test_agrees_with_torch_attention():
    inputs = make_inputs(batch=2, heads=6, prompt=40, rows=7).double()
    mask = torch.ones(7, 47, dtype=torch.bool).tril(40)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *inputs, attn_mask=mask, enable_gqa=True
    )
    torch.testing.assert_close(python_ref.lookahead_attention(*inputs)[0], expected)
    whole = make_inputs(prompt=0, rows=47).double()
    expected = torch.nn.functional.scaled_dot_product_attention(
        *whole, is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(python_ref.prefill_attention(*whole, 7)[0], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_computes_in_float32_or_float64(dtype):
    """Half precision is widened first: the only error left is float32 rounding."""
    inputs = make_inputs(batch=2, prompt=200, dtype=dtype)
    out, lse, scores = python_ref.lookahead_attention(*inputs)
    exact = python_ref.lookahead_attention(*inputs.double())
    assert all(tensor.dtype == torch.float64 for tensor in exact)
    assert out.dtype == dtype and lse.dtype == scores.dtype == torch.float32
    assert_fp32_close(lse, exact[1])
    assert_fp32_close(scores, exact[2])


def test_prefill_scores_are_those_of_the_last_rows():
    inputs = make_inputs(prompt=0, rows=40).double()
    last = inputs.query[:, :, 33:]
    expected = python_ref.column_scores(last, inputs.key)
    scores = python_ref.prefill_attention(*inputs, 7)[2]
    assert scores.shape == (1, 2, 33)
    torch.testing.assert_close(scores, expected)


def test_padding_equals_the_unpadded_problem():
    """A padded batch row is the shorter problem on its own, whatever lies in the padding."""
    inputs = make_inputs(batch=3, prompt=20).double()
    first, last = (4, 0, 9), (20, 13, 9)
    inputs.key[0, :, :4] = 1e3
    inputs.value[1, :, 13:20] = 1e3
    padding = {"leftpad_k": lengths(*first), "seqused_k": lengths(*last)}
    result = python_ref.lookahead_attention(*inputs, **padding)
    for b in range(3):
        real = [*range(first[b], last[b]), *range(20, 25)]
        query, key, value = (tensor[b : b + 1] for tensor in inputs)
        alone = python_ref.lookahead_attention(query, key[:, :, real], value[:, :, real])
        torch.testing.assert_close(result[0][b], alone[0][0])
        torch.testing.assert_close(result[1][b], alone[1][0])
        torch.testing.assert_close(result[2][b, :, first[b] : last[b]], alone[2][0])
        padded = [j for j in range(20) if not first[b] <= j < last[b]]
        assert (result[2][b, :, padded] == 0).all()


def pick(row: list[float], budget: int, **options: Any) -> list[int]:
    scores = torch.tensor(row, dtype=torch.float32)[None, None]
    return python_ref.select(scores, budget, **options)[0, 0].tolist()


def test_budget_of_everything_keeps_everything():
    scores = torch.randn(2, 3, 11)
    for budget in (11, 12, 1000):
        indices = python_ref.select(scores, budget)
        assert torch.equal(indices, torch.arange(11, dtype=torch.int32).expand(2, 3, 11))


def test_pooled_plateau_keeps_the_smaller_positions():
    """One peak makes a plateau of 7 equal pooled scores; the first of them are kept."""
    row = [0.0] * 20
    row[10] = 1.0
    assert pick(row, 7) == [7, 8, 9, 10, 11, 12, 13]
    assert pick(row, 3) == [7, 8, 9]
    assert pick(row, 9) == [0, 1, 7, 8, 9, 10, 11, 12, 13]
    assert pick(row, 3, pool_kernel=1) == [0, 1, 10]
    assert pick(row, 3, pool_kernel=3) == [9, 10, 11]


def test_hand_computed_ties():
    assert pick([1, 2, 2, 2, 1], 2, pool_kernel=1) == [1, 2]
    assert pick([3, 3, 3, 3], 2, pool_kernel=1) == [0, 1]
    assert pick([0.0, -0.0, 0.0], 1, pool_kernel=1) == [0]
    assert pick([-0.0, 0.0, 0.0], 1, pool_kernel=1) == [0]
    assert pick([math.nan, -math.inf, math.nan, 1.0], 2, pool_kernel=1) == [1, 3]
    assert pick([math.nan, math.nan, math.nan], 2, pool_kernel=1) == [0, 1]
    assert pick([math.inf, math.nan, 0.0, math.inf], 2, pool_kernel=1) == [0, 3]


def test_pool_of_nan_and_infinity():
    row = torch.tensor([math.nan, math.nan, 1.0, -math.inf, math.nan, math.inf])
    pooled = python_ref.max_pool(row, 3)
    assert math.isnan(pooled[0])
    assert pooled[1:].tolist() == [1.0, 1.0, 1.0, math.inf, math.inf]


def test_pool_agrees_with_torch():
    row = torch.randn(3, 50)
    for kernel in (1, 3, 7, 49, 51):
        expected = torch.nn.functional.max_pool1d(
            torch.nn.functional.pad(row, (25, 25), value=-math.inf), kernel, stride=1
        )
        start = 25 - kernel // 2
        assert torch.equal(python_ref.max_pool(row, kernel), expected[:, start : start + 50])


def test_pins_and_padding():
    assert pick([9, 8, 7, 1, 1, 1], 3, pool_kernel=1, num_recent=2) == [0, 4, 5]
    assert pick([1, 1, 7, 8, 9, 9], 3, pool_kernel=1, num_sink=2) == [0, 1, 4]
    assert pick([1, 1, 7, 8, 1, 1], 4, pool_kernel=1, num_sink=2, num_recent=2) == [0, 1, 4, 5]
    padding = {"leftpad_k": lengths(2), "seqused_k": lengths(5)}
    assert pick([9, 9, 1, 2, 3, 9], 2, pool_kernel=1, **padding) == [3, 4]
    assert pick([9, 9, 1, 2, 3, 9], 2, pool_kernel=1, num_sink=1, **padding) == [2, 4]
    # The pool does not look into the padding: with it, position 2 would win.
    assert pick([9, 9, 1, 2, 3, 0], 1, pool_kernel=3, **padding) == [3]
    assert pick([9, 9, 1, 2, 3, 9], 5, **padding) == [2, 3, 4, -1, -1]
    empty = {"leftpad_k": lengths(3), "seqused_k": lengths(3)}
    assert pick([9, 9, 1, 2, 3, 9], 2, **empty) == [-1, -1]


def test_gather_takes_rows_and_leaves_empty_slots_zero():
    key = torch.arange(24.0).reshape(1, 2, 3, 4)
    indices = torch.tensor([[[0, 2], [1, -1]]], dtype=torch.int32)
    kept_key, kept_value = python_ref.gather_kv(key, -key - 1, indices)
    assert kept_key[0, 0].tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert kept_key[0, 1].tolist() == [[16, 17, 18, 19], [0, 0, 0, 0]]
    assert kept_value[0, 1].tolist() == [[-17, -18, -19, -20], [0, 0, 0, 0]]


def test_kept_observation_rows_follow_the_prompt():
    inputs = make_inputs(batch=2, prompt=6, rows=3)
    used = lengths(6, 1)
    result = python_ref.score_and_evict(*inputs, 5, keep_observation=True, seqused_k=used)
    assert result.indices.shape == (2, 2, 5)
    assert result.indices[0, :, 2:].tolist() == [[6, 7, 8]] * 2
    assert result.indices[1].tolist() == [[0, 6, 7, 8, -1]] * 2
    assert torch.equal(result.key[1, :, 1:4], inputs.key[1, :, 6:])
    assert (result.value[1, :, 4] == 0).all()


@pytest.mark.parametrize("padded", [False, True])
def test_gradient(padded):
    """The written-out Jacobian against autograd, and autograd against finite differences."""
    inputs = make_inputs(batch=2, heads=2, kv_heads=1, prompt=5, rows=2, dim=8).double()
    padding: dict[str, Tensor] = {}
    if padded:
        padding = {"leftpad_k": lengths(2, 0), "seqused_k": lengths(5, 0)}
    query, key = inputs.query.requires_grad_(), inputs.key.requires_grad_()

    def scores(query: Tensor, key: Tensor) -> Tensor:
        return python_ref.column_scores(query, key, scale=0.7, **padding)

    assert torch.autograd.gradcheck(scores, (query, key), fast_mode=True)
    grad = torch.randn(2, 1, 5, dtype=torch.float64)
    expected = torch.autograd.grad(scores(query, key), (query, key), grad)
    actual = python_ref.column_scores_backward(grad, query, key, scale=0.7, **padding)
    torch.testing.assert_close(actual, expected)
