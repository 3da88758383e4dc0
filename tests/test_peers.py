"""The eager peer computes what it claims to: the accuracy rule and the speed bars lean on it."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_fp32_close, make_inputs

from bench.peers.eager import eager_attention, eager_score_and_evict, eager_scores
from lookaheadkv_kernels import python_ref


@pytest.mark.parametrize("heads, rows, prompt", [(2, 1, 30), (6, 5, 100), (8, 32, 1)])
def test_eager_is_the_reference_in_float32(heads, rows, prompt):
    inputs = make_inputs(batch=2, heads=heads, prompt=prompt, rows=rows)
    out, _, scores = python_ref.lookahead_attention(*inputs.double())
    assert_fp32_close(eager_attention(*inputs), out)
    assert_fp32_close(eager_scores(*inputs[:2]), scores)


def test_eager_keeps_the_best_and_gathers_their_rows():
    inputs = make_inputs(batch=2, prompt=100)
    key, value, indices, scores = eager_score_and_evict(*inputs, 20, pool_kernel=7)
    pooled = torch.stack([python_ref.max_pool(row) for row in scores.flatten(0, 1)]).view_as(scores)
    kept = pooled.gather(2, indices)
    assert (kept.diff(dim=-1) <= 0).all()
    expected = pooled.gather(2, python_ref.select(scores, 20).long())
    assert torch.equal(kept, expected.sort(descending=True).values)
    for actual, full in ((key, inputs.key), (value, inputs.value)):
        assert torch.equal(actual, full.gather(2, indices[..., None].expand(-1, -1, -1, 64)))
    assert eager_score_and_evict(*inputs, 1000)[2].shape == (2, 2, 100)


def test_eager_rounds_in_the_inputs_dtype():
    """It materialises in half precision, as model code does: that is the error it is there for."""
    inputs = make_inputs(prompt=300, dtype=torch.bfloat16)
    assert eager_scores(*inputs[:2]).dtype == torch.bfloat16
    exact = python_ref.column_scores(*inputs.double()[:2])
    error = (eager_scores(*inputs[:2]).double() - exact).abs().max() / exact.max()
    assert 1e-4 < error < 3e-2
