"""Kernels against float64 and eager PyTorch: every head ratio, row count, size and tile edge."""

from __future__ import annotations

import pytest
import torch
from support.accuracy import check_attention, check_everything, check_scores
from support.helpers import DTYPES, assert_accurate, make_inputs

import lookaheadkv_kernels as lk
from bench.peers.eager import eager_attention, eager_scores
from lookaheadkv_kernels import python_ref

GROUPS = (1, 2, 3, 4, 5, 7, 8)
ROWS = (1, 2, 5, 32, 33)
# Edges of SIMD vectors, key tiles (96) and the smallest chunks (8 tiles), one short and one past.
# Both N and S = N + 5 meet each edge.
EDGES = (0, 16, 64, 96, 192, 768, 1536)
ROWS_AT_EDGES = 5
PROMPTS = sorted(
    {
        edge + shift - cut
        for edge in EDGES
        for shift in (-1, 0, 1)
        for cut in (0, ROWS_AT_EDGES)
        if edge + shift - cut >= 0
    }
)
DIMS = (8, 16, 24, 40, 64, 72, 80, 96, 112, 128, 192, 256)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("group", GROUPS)
def test_head_ratio_and_rows(group, rows, dtype, device):
    inputs = make_inputs(
        batch=2,
        heads=2 * group,
        kv_heads=2,
        prompt=203,
        rows=rows,
        dim=32,
        dtype=dtype,
        device=device,
    )
    check_everything(inputs, 40)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_tile_edges(prompt, dtype, device):
    inputs = make_inputs(
        heads=3, kv_heads=1, prompt=prompt, rows=ROWS_AT_EDGES, dim=16, dtype=dtype, device=device
    )
    check_everything(inputs, max(1, prompt // 3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_head_dim(dim, dtype, device):
    """In contiguous storage; test_evict.py holds every other layout to these bits."""
    inputs = make_inputs(
        batch=2, heads=6, kv_heads=3, prompt=130, dim=dim, dtype=dtype, device=device
    )
    check_everything(inputs, 31)


@pytest.mark.parametrize("heads, prompt", [(1, 50), (3, 0), (3, 700)])
@pytest.mark.parametrize("rows", [16, 17, 65, 95, 96, 97, 130, 300])
def test_many_rows(rows, heads, prompt, device):
    """Observation rows over more than one tile, more rows than one block."""
    inputs = make_inputs(heads=heads, kv_heads=1, prompt=prompt, rows=rows, dim=16, device=device)
    check_everything(inputs, 40)


@pytest.mark.parametrize("kv_heads, prompt", [(1, 10_000), (1, 45_000), (5, 20_000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_long_prompt(dtype, kv_heads, prompt, device):
    """More tiles than any cache between the two sweeps over the keys holds: of a head, of all."""
    inputs = make_inputs(
        heads=4 * kv_heads,
        kv_heads=kv_heads,
        prompt=prompt,
        rows=32,
        dim=8,
        dtype=dtype,
        device=device,
    )
    check_everything(inputs, 500)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_llama_layer(dtype, device):
    """Llama-3.1-8B's heads, a few chunks of keys."""
    inputs = make_inputs(
        heads=32, kv_heads=8, prompt=1700, rows=32, dim=128, dtype=dtype, device=device
    )
    check_everything(inputs, 256)


@pytest.mark.parametrize("scale", [0.0, 0.02, 0.5, -0.3])
def test_scale(scale, device):
    inputs = make_inputs(prompt=300, device=device)
    result = lk.lookahead_attention(*inputs, scale=scale)
    reference = python_ref.lookahead_attention(*inputs.double(), scale=scale)
    for actual, exact in zip(result, reference, strict=True):
        assert_accurate(actual, actual, exact, torch.float32)
    scores = lk.score_and_evict(*inputs, 9, scale=scale).scores
    assert_accurate(scores, scores, reference[2], torch.float32)


def test_logits_beyond_exp_range(device):
    """Logits of +-thousands: no overflow, and the largest still wins."""
    inputs = make_inputs(prompt=300, dim=16, device=device)
    inputs.key[:, :, 123] *= 50
    result = lk.lookahead_attention(*inputs, scale=60.0)
    reference = python_ref.lookahead_attention(*inputs.double(), scale=60.0)
    # The logits themselves carry float32 rounding of this size, and exp turns it into relative
    # error of the probabilities.
    rounding = float(reference[1].abs().max()) * torch.finfo(torch.float32).eps * 8
    for actual, exact in zip(result, reference, strict=True):
        assert torch.isfinite(actual).all()
        torch.testing.assert_close(actual.double(), exact, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("rows", [1, 5, 33, 130])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_key_that_no_row_can_see(rows, dtype, device):
    """A logit of minus infinity in every row: a share of zero, whatever fills up a tile of rows."""
    inputs = make_inputs(heads=1, kv_heads=1, prompt=70, rows=rows, dtype=dtype, device=device)
    inputs.query[..., 0] = inputs.query[..., 0].abs() + 0.5
    inputs.key[:, :, 7, 0] = float("-inf")
    attention = check_attention(inputs)
    for scores in (attention.scores, check_scores(inputs), check_scores(inputs, attention.lse)):
        assert scores[0, 0, 7] < 1e-30


@pytest.mark.parametrize("batch, prompt", [(0, 50), (2, 0), (0, 0)])
def test_nothing_to_score(batch, prompt, device):
    inputs = make_inputs(batch=batch, prompt=prompt, device=device)
    check_everything(inputs, 4)
    evicted = lk.score_and_evict(*inputs, 4)
    assert evicted.key.shape == (batch, 2, min(4, prompt), 64)
    assert evicted.scores.shape == (batch, 2, prompt)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize(
    "positions, rows", [(1, 1), (2, 1), (33, 33), (150, 7), (97, 32), (400, 2)]
)
def test_prefill_attention(positions, rows, layout, dtype, device):
    inputs = make_inputs(
        batch=2,
        heads=6,
        prompt=0,
        rows=positions,
        dim=40,
        dtype=dtype,
        layout=layout,
        device=device,
    )
    result = lk.prefill_attention(*inputs, rows)
    reference = python_ref.prefill_attention(*inputs.double(), rows)
    eager = python_ref.prefill_attention(*inputs, rows)[1]
    last = inputs.query[:, :, positions - rows :]
    assert result.out.is_contiguous() and result.out.dtype == dtype
    assert_accurate(result.out, eager_attention(*inputs), reference[0], dtype)
    assert_accurate(result.lse, eager, reference[1], dtype)
    assert_accurate(result.scores, eager_scores(last, inputs.key), reference[2], dtype)
