"""The CUDA backend alone on a GPU: against the CPU and Triton, and what only it does its own way.

What it shares with Triton is in test_gpu.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support.helpers import DTYPES, assert_bitwise, lengths, make_inputs
from torch import Tensor

import lookaheadkv_kernels as lk
from lookaheadkv_kernels import python_ref, triton

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or "cuda" not in lk.available_backends(),
        reason="needs a GPU and the CUDA library",
    ),
]

DEVICE = torch.device("cuda")


@pytest.fixture(autouse=True)
def on_cuda() -> Iterator[None]:
    lk.set_backend("cuda")
    yield
    lk.set_backend(None)


def special_scores(length: int) -> Tensor:
    """[2, 3, length]: random, few values, NaN, ascending, all equal, infinities."""
    rows = torch.stack(
        [
            torch.rand(length),
            torch.randint(0, 6, (length,)).float(),
            torch.where(torch.arange(length) % 17 < 13, torch.nan, -0.25),
            torch.arange(length).float(),
            torch.full((length,), 0.125),
            torch.tensor([torch.inf, -torch.inf, 0.0, -0.0])[torch.randint(0, 4, (length,))],
        ]
    )
    return rows.view(2, 3, length).contiguous()


@pytest.mark.skipif(not triton.installed(), reason="needs Triton")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_prefill_is_routed_to_the_faster_backend(dtype: torch.dtype) -> None:
    inputs = make_inputs(heads=4, kv_heads=4, prompt=700, dtype=dtype, device=DEVICE)
    whole = (torch.cat([inputs.key] * 2, 1), inputs.key, inputs.value)
    results = {}
    for name in ("cuda", "triton", None):
        lk.set_backend(name)
        results[name] = lk.prefill_attention(*whole, 9)
    leads = triton.leads_prefill(whole[0])
    assert_bitwise(results[None], results["triton" if leads else "cuda"])


@pytest.mark.parametrize("pool", [1, 7, 63, 65, 1001])
@pytest.mark.parametrize("length", [1, 31, 4097, 32_768, 32_769, 300_000])
def test_select_gives_the_indices_of_the_cpu(length: int, pool: int) -> None:
    scores = special_scores(length)
    padding = {
        "leftpad_k": lengths(length // 5, length // 2),
        "seqused_k": lengths(length, length // 2),
    }
    lk.set_backend(None)  # every tensor by its own device
    for budget in {max(5, length // 100), max(5, length // 2), length + 5}:
        for pads in ({}, padding):
            options = {"pool_kernel": pool, "num_sink": 2, "num_recent": 3}
            expected = lk.select(scores, budget, **options, **pads)
            on_device = {name: tensor.cuda() for name, tensor in pads.items()}
            assert_bitwise(lk.select(scores.cuda(), budget, **options, **on_device).cpu(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [1, 2, 4])
def test_rows_that_are_not_aligned_to_16_bytes(dtype: torch.dtype, offset: int) -> None:
    aligned = make_inputs(heads=6, prompt=500, dim=72, dtype=dtype, device=DEVICE)
    shifted = []
    for tensor in aligned:
        storage = tensor.new_full((tensor.numel() + offset,), torch.nan)
        view = storage[offset:].view(tensor.shape)
        view.copy_(tensor)
        shifted.append(view)
    assert_bitwise(lk.score_and_evict(*shifted, 64), lk.score_and_evict(*aligned, 64))
    assert_bitwise(lk.lookahead_attention(*shifted), lk.lookahead_attention(*aligned))


@pytest.mark.skipif(not triton.available(), reason="needs Triton")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_triton(dtype: torch.dtype) -> None:
    inputs = make_inputs(batch=2, heads=8, prompt=3001, dim=128, dtype=dtype, device=DEVICE)
    ours = lk.score_and_evict(*inputs, 256, keep_observation=True)
    lk.set_backend("triton")
    theirs = lk.score_and_evict(*inputs, 256, keep_observation=True)
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-3, atol=1e-7)
    assert torch.equal(python_ref.select(ours.scores, 224), ours.indices[..., :224])


def test_gradient_without_lse_is_the_one_with_it() -> None:
    query, key, value = make_inputs(heads=4, prompt=777, dim=64, device=DEVICE)
    grad = torch.randn(1, 2, 777, device=DEVICE)
    lse = lk.lookahead_attention(query, key, value).lse
    op = torch.ops.lookaheadkv.column_scores_backward
    for without, given in zip(op(grad, query, key), op(grad, query, key, lse), strict=True):
        torch.testing.assert_close(without, given, rtol=1e-4, atol=1e-6)
