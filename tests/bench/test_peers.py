"""The peers compute what they claim to: the accuracy rule and the speed bars lean on them."""

from __future__ import annotations

import sys

import pytest
import torch
from support.build_tools import ROOT, checked
from support.helpers import assert_fp32_close, make_inputs

from bench.peers.column_parallel import column_parallel_evict, column_parallel_scores
from bench.peers.compiled import compiled_score_and_evict
from bench.peers.eager import (
    eager_attention,
    eager_probabilities,
    eager_score_and_evict,
    eager_scores,
)
from bench.peers.pool_topk import pool_topk_sorted, torch_gather
from bench.peers.row_parallel import row_parallel_evict, row_parallel_scores
from bench.peers.sdpa import sdpa_and_eager_scores
from bench.peers.snapkv import snapkv_compress, snapkv_scores
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


def test_sdpa_is_the_reference_in_float32():
    inputs = make_inputs(batch=2, heads=6, prompt=100)
    out, _, scores = python_ref.lookahead_attention(*inputs.double())
    actual = sdpa_and_eager_scores(*inputs)
    assert_fp32_close(actual[0], out)
    assert_fp32_close(actual[1], scores)


def test_compiled_eager_is_eager():
    inputs = make_inputs(prompt=100)
    for actual, expected in zip(
        compiled_score_and_evict(*inputs, 20), eager_score_and_evict(*inputs, 20), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


SHAPES = [(2, 1, 30), (6, 5, 100), (8, 32, 1100)]


@pytest.mark.parametrize("heads, rows, prompt", SHAPES)
def test_kernels_of_others_are_the_reference_in_float32(heads, rows, prompt):
    query, key, _ = inputs = make_inputs(batch=2, heads=heads, prompt=prompt, rows=rows)
    _, lse, scores = python_ref.lookahead_attention(*inputs.double())
    assert_fp32_close(row_parallel_scores(query, key), scores)
    assert_fp32_close(column_parallel_scores(query, key, lse.float()), scores)


def test_eviction_by_kernels_of_others_keeps_what_eager_keeps():
    inputs = make_inputs(batch=2, heads=6, prompt=100)
    lse = python_ref.lookahead_attention(*inputs.double())[1].float()
    expected = eager_score_and_evict(*inputs, 20)[:2]
    for kept in (
        row_parallel_evict(*inputs, 20),
        column_parallel_evict(*inputs, lse, 20),
    ):
        for actual, wanted in zip(kept, expected, strict=True):
            # Equal pooled scores may come in another order.
            assert torch.equal(actual.sum(-1).sort().values, wanted.sum(-1).sort().values)


def test_their_triton_kernels_in_the_interpreter():
    """Run by itself: the interpreter is chosen when kernels are imported."""
    pytest.importorskip("triton")
    script = f"""
import sys
sys.path[:0] = {[str(ROOT), str(ROOT / "tests")]!r}
from support.helpers import assert_fp32_close, make_inputs
from bench.peers import column_parallel, row_parallel
from lookaheadkv_kernels import python_ref
for layout in ("bhsd", "bshd"):
    inputs = make_inputs(batch=2, heads=6, prompt=100, rows=5, dim=32, layout=layout)
    query, key, _ = inputs
    _, lse, scores = python_ref.lookahead_attention(*inputs.double())
    sums = row_parallel.on_gpu(query, key).view(2, 2, 3, 100).sum(2)
    assert_fp32_close(sums / 15, scores)
    folded = query.reshape(2, 2, 15, 32), key[:, :, :100], lse.float().reshape(2, 2, 15)
    assert_fp32_close(column_parallel.on_gpu(*folded) / 15, scores)
"""
    checked([sys.executable, "-c", script], env={"TRITON_INTERPRET": "1"})


def test_snapkv_averages_before_the_group_and_keeps_the_window():
    query, key, value = make_inputs(batch=2, heads=6, prompt=100, rows=5)
    exact = eager_probabilities(query, key)[..., :100].mean(dim=2)
    pooled = torch.nn.functional.avg_pool1d(exact, 5, 1, 2).view(2, 2, 3, 100).mean(dim=2)
    scores = snapkv_scores(query, key)
    torch.testing.assert_close(scores[..., :100], pooled)
    assert (scores[..., 100:] > scores[..., :100].max()).all()
    kept_key, kept_value = snapkv_compress(query, key, value, 20)
    assert kept_key.shape == kept_value.shape == (2, 2, 20, 64)
    for row in key[0, 0, 100:]:
        assert (kept_key[0, 0] == row).all(dim=-1).any()


def test_selection_and_gather_of_plain_torch():
    scores = torch.rand(2, 3, 200)
    sorted_ = pool_topk_sorted(scores, 30)
    assert (sorted_.diff(dim=-1) > 0).all()
    pooled = torch.nn.functional.max_pool1d(scores, 7, 1, 3)
    assert torch.equal(
        pooled.gather(2, sorted_).sort().values, pooled.topk(30).values.sort().values
    )
    key, value = torch.randn(2, 2, 3, 200, 8)
    kept_key, kept_value = torch_gather(key, value, sorted_)
    assert torch.equal(kept_key[1, 2, 7], key[1, 2, sorted_[1, 2, 7]])
    assert torch.equal(kept_value[0, 1, 3], value[0, 1, sorted_[0, 1, 3]])
