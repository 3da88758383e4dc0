"""Both GPU backends on a GPU: right, without a host sync, in graphs, streams and compiled code.

``pytest -m gpu``, with ``-k cuda`` or ``-k triton`` for one of them; nothing of it runs without a
GPU. The op tests run there as well: ``LOOKAHEADKV_BACKEND=cuda pytest tests/ops/test_ops.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.accuracy import check_everything
from support.helpers import DTYPES, LAYOUTS, assert_accurate, assert_bitwise, lengths, make_inputs
from torch import Tensor

import lookaheadkv_kernels as lk
from bench.peers.eager import eager_attention, eager_scores
from lookaheadkv_kernels import python_ref, triton

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or triton.interpreting(), reason="needs a GPU"
    ),
    pytest.mark.usefixtures("gpu_backend"),
]

OPS = torch.ops.lookaheadkv
DEVICE = torch.device("cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 7, 8])
def test_head_ratios(group, dtype):
    inputs = make_inputs(
        batch=2,
        heads=2 * group,
        prompt=1003,
        rows=32,
        dim=128,
        dtype=dtype,
        device=DEVICE,
    )
    check_everything(inputs, 128)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", [8, 40, 64, 72, 96, 128, 256])
def test_head_dims_and_layouts(dim, layout):
    inputs = make_inputs(
        batch=2,
        heads=6,
        prompt=700,
        rows=17,
        dim=dim,
        dtype=torch.bfloat16,
        layout=layout,
        device=DEVICE,
    )
    check_everything(inputs, 100)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("prompt", [32_768, 131_072])
def test_long_prompt(prompt, dtype):
    inputs = make_inputs(heads=8, prompt=prompt, rows=32, dim=128, dtype=dtype, device=DEVICE)
    check_everything(inputs, 2048)


def test_padding_is_clamped_and_never_read():
    """Lengths out of range are clamped, as a GPU cannot report them; NaN in padding stays there."""
    inputs = make_inputs(batch=3, prompt=600, dim=64, dtype=torch.bfloat16, device=DEVICE)
    inside = {
        "leftpad_k": lengths(0, 50, 600, device=DEVICE),
        "seqused_k": lengths(600, 333, 600, device=DEVICE),
    }
    expected = lk.score_and_evict(*inputs, 64, **inside)
    for tensor in (inputs.key, inputs.value):
        tensor[1, :, :50] = math.nan
        tensor[1, :, 333:600] = math.nan
        tensor[2, :, :600] = math.nan
    beyond = {
        "leftpad_k": lengths(-5, 50, 10_000, device=DEVICE),
        "seqused_k": lengths(9_999, 333, 601, device=DEVICE),
    }
    assert_bitwise(lk.score_and_evict(*inputs, 64, **beyond), expected)


def test_offsets_past_two_to_the_31():
    """A cache of more than 2^31 elements: the same keys at its end as on their own."""
    heads, keys, dim = 3, 2**22, 256
    if torch.cuda.mem_get_info()[0] < 8 * 2**30:
        pytest.skip("too little device memory")
    cache = torch.empty(1, heads, keys, dim, dtype=torch.bfloat16, device=DEVICE)
    assert cache.numel() > 2**31
    near = torch.randn(1, heads, 500, dim, dtype=torch.bfloat16, device=DEVICE)
    far = cache[:, :, -500:]
    far.copy_(near)
    query = torch.randn(1, 2 * heads, 32, dim, dtype=torch.bfloat16, device=DEVICE)
    assert_bitwise(lk.column_scores(query, far), lk.column_scores(query, near))
    indices = torch.full((1, heads, 1), keys - 1, dtype=torch.int32, device=DEVICE)
    assert_bitwise(lk.gather_kv(cache, cache, indices).key, near[:, :, -1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [64, 128])
def test_prefill(dim, dtype):
    inputs = make_inputs(heads=8, prompt=0, rows=2100, dim=dim, dtype=dtype, device=DEVICE)
    result = lk.prefill_attention(*inputs, 32)
    reference = python_ref.prefill_attention(*inputs.double(), 32)
    eager = python_ref.prefill_attention(*inputs, 32)[1]
    assert_accurate(result.out, eager_attention(*inputs), reference[0], dtype)
    assert_accurate(result.lse, eager, reference[1], dtype)
    last = inputs.query[:, :, -32:]
    assert_accurate(result.scores, eager_scores(last, inputs.key), reference[2], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient(dtype):
    query, key, _ = make_inputs(heads=8, prompt=1500, rows=32, dim=128, dtype=dtype, device=DEVICE)
    query.requires_grad_()
    key.requires_grad_()
    scores = lk.column_scores(query, key)
    grad = torch.randn_like(scores) * scores.shape[-1]
    actual = torch.autograd.grad(scores, (query, key), grad)
    exact = python_ref.column_scores_backward(
        grad.double(), query.detach().double(), key.detach().double()
    )
    eager = torch.autograd.grad(eager_scores(query, key), (query, key), grad.to(dtype))
    for got, plain, reference in zip(actual, eager, exact, strict=True):
        assert_accurate(got, plain, reference, dtype)


@pytest.mark.parametrize("make", [torch.rand, torch.zeros], ids=["random", "equal"])
@pytest.mark.parametrize("length", [8_000, 32_768, 131_072, 1_000_000])
def test_select(length, make):
    scores = make(2, 2, length, device=DEVICE)
    for budget, pool in ((128, 7), (2048, 1), (length - 3, 31)):
        assert_bitwise(
            lk.select(scores, budget, pool_kernel=pool),
            python_ref.select(scores, budget, pool_kernel=pool),
        )


def calls() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Every op with warm kernels' shapes."""
    query, key, value = make_inputs(
        batch=2, heads=8, prompt=3000, rows=32, dim=128, dtype=torch.bfloat16, device=DEVICE
    )
    whole = torch.cat([key] * 4, 1)
    scores = torch.rand(2, 2, 40_000, device=DEVICE)
    lse = lk.lookahead_attention(query, key, value).lse
    return {
        "lookahead_attention": (OPS.lookahead_attention, (query, key, value)),
        "column_scores": (OPS.column_scores, (query, key)),
        "column_scores lse": (OPS.column_scores, (query, key, lse)),
        "column_scores_backward": (
            OPS.column_scores_backward,
            (scores[..., :3000].contiguous(), query, key, lse),
        ),
        "prefill_attention": (OPS.prefill_attention, (whole, key, value, 32)),
        "select": (OPS.select, (scores[..., :3000], 128)),
        "select long": (OPS.select, (scores, 128)),
        "score_and_evict": (OPS.score_and_evict, (query, key, value, 128)),
    }


NAMES = (
    "lookahead_attention",
    "column_scores",
    "column_scores lse",
    "column_scores_backward",
    "prefill_attention",
    "select",
    "select long",
    "score_and_evict",
)


def results(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


@pytest.mark.parametrize("name", NAMES)
def test_no_host_sync(name):
    op, args = calls()[name]
    expected = results(op(*args))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = results(op(*args))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_bitwise(again, expected)


@pytest.mark.parametrize("name", NAMES)
def test_cuda_graph(name):
    """Captured once, replayed on other values."""
    op, args = calls()[name]
    results(op(*args))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(op(*args))
    for _ in range(2):
        for tensor in args:
            if isinstance(tensor, Tensor) and tensor.dtype == torch.bfloat16:
                tensor.copy_(torch.randn_like(tensor))
        graph.replay()
        assert_bitwise(captured, results(op(*args)))


@pytest.mark.parametrize("name", NAMES)
def test_other_stream(name):
    op, args = calls()[name]
    expected = results(op(*args))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        actual = results(op(*args))
    torch.cuda.current_stream().wait_stream(stream)
    assert_bitwise(actual, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_other_device():
    inputs = make_inputs(prompt=300, dtype=torch.bfloat16, device="cuda:1")
    expected = lk.score_and_evict(*(tensor.to("cuda:0") for tensor in inputs), 40)
    with torch.cuda.device(0):
        actual = lk.score_and_evict(*inputs, 40)
    assert actual.key.device == inputs.key.device
    assert torch.equal(actual.indices.cpu(), expected.indices.cpu())


def test_compiled():
    """In one graph with what surrounds it, replayed for other lengths."""

    def layer(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        kept = lk.score_and_evict(query * 2, key, value + 1, 64, num_sink=4)
        return kept.key * 3, kept.value, kept.indices, kept.scores

    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for prompt in (1000, 40, 3000):
        inputs = make_inputs(heads=8, prompt=prompt, rows=32, dim=64, device=DEVICE)
        torch.testing.assert_close(compiled(*inputs), layer(*inputs))


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_every_time(name):
    op, args = calls()[name]
    first = results(op(*args))
    for _ in range(5):
        assert_bitwise(results(op(*args)), first)
