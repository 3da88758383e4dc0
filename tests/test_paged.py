"""Scoring and selection from paged caches: the reference, the dense ops, and what rows say."""

from __future__ import annotations

from random import Random

import pytest
import torch
from helpers import DTYPES, assert_bitwise, lengths
from paged_layouts import QUANTISED, Paged, dense_request, random_paged, random_selection
from torch import Tensor

import lookaheadkv_kernels as lk
from lookaheadkv_kernels import python_ref
from lookaheadkv_kernels.python_ref import paged

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Scores within the tolerance of the inputs' dtype."""
    assert actual.shape == expected.shape and actual.dtype == torch.float32
    limit = TOLERANCE[dtype] * float(expected.abs().max() if expected.numel() else 0)
    assert float((actual - expected).abs().max() if expected.numel() else 0) <= limit + 1e-8


def check_layout(random: Random, device: torch.device) -> None:
    """One random layout: scores, indices and lengths."""
    batch = random_paged(random, device=device)
    selection = random_selection(random, batch)
    max_budget = selection.pop("max_budget")
    scores = lk.paged_column_scores(*batch.batch)
    assert_close(scores, python_ref.paged_column_scores(*batch.batch), batch.query.dtype)
    for r in range(len(batch.seq_lens)):
        if (dense := dense_request(batch, r)) is not None:
            expected = lk.column_scores(*dense[:2])[0]
            actual = scores[r, :, : expected.shape[1]]
            if device.type == "cpu":
                assert_bitwise(actual, expected)
            else:
                torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-6)
    result = lk.paged_score_and_select(*batch.batch, max_budget, **selection)
    expected = python_ref.paged_select(result.scores, *batch.lens[1:], max_budget, **selection)
    assert_bitwise(result[:2], expected)
    assert_bitwise(lk.paged_select(scores, *batch.lens[1:], max_budget, **selection), expected)


# The bar's 2,000 layouts, in parts that fail on their own.
@pytest.mark.parametrize("part", range(20))
def test_random_layouts(part, seed, device):
    for i in range(100):
        check_layout(Random(1_000_003 * seed + i), device)
