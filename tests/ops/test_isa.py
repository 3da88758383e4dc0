"""Every instruction set that this machine has, through LOOKAHEADKV_CPU_ISA."""

from __future__ import annotations

import math

import pytest
import torch
from support.accuracy import check_everything
from support.calls import OPS, results_of_all_ops
from support.helpers import DTYPES, assert_accurate, assert_bitwise, make_inputs
from support.score_rows import ROWS

import lookaheadkv_kernels as lk
from bench.peers.eager import eager_scores
from lookaheadkv_kernels import info, python_ref

VARIABLE = "LOOKAHEADKV_CPU_ISA"
ISAS = info.supported_isas()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test on this instruction set."""
    monkeypatch.setenv(VARIABLE, request.param)
    assert info.active_isa() == request.param
    return str(request.param)


def test_portable_code_is_always_there():
    assert ISAS[-1] == "portable"
    x86 = {"amx", "avx512_bf16", "avx512", "avx2"}
    assert set(ISAS[:-1]) <= x86 or set(ISAS[:-1]) <= {"neon_bf16", "neon"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group, rows, dim", [(1, 1, 8), (3, 5, 24), (4, 33, 72), (2, 32, 256)])
def test_accuracy(isa, group, rows, dim, dtype):
    inputs = make_inputs(
        batch=2, heads=2 * group, prompt=211, rows=rows, dim=dim, dtype=dtype, layout="bshd"
    )
    check_everything(inputs, 40)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("prompt", [0, 1, 15, 91, 96, 97, 763, 768, 769])
def test_tile_edges(isa, prompt, dtype):
    check_everything(make_inputs(heads=3, kv_heads=1, prompt=prompt, dim=40, dtype=dtype), 33)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group, rows, dim", [(1, 1, 8), (3, 5, 72), (4, 32, 128)])
def test_gradient(isa, group, rows, dim, dtype):
    query, key, _ = make_inputs(
        batch=2, heads=2 * group, prompt=203, rows=rows, dim=dim, dtype=dtype
    )
    grad = torch.randn(2, 2, 203) * 203
    actual = OPS.column_scores_backward(grad, query, key)
    exact = python_ref.column_scores_backward(grad.double(), query.double(), key.double())
    leaves = (query.requires_grad_(), key.requires_grad_())
    eager = torch.autograd.grad(eager_scores(query, key), leaves, grad.to(dtype))
    for got, plain, reference in zip(actual, eager, exact, strict=True):
        assert_accurate(got, plain, reference, dtype)


@pytest.mark.parametrize("make", ROWS, ids=lambda make: make.__name__)
def test_select(isa, make):
    for length, budget in ((5, 2), (100, 7), (1025, 64), (4000, 5), (4000, 3000)):
        scores = make(1, 2, length)
        for pool_kernel in (1, 5, 7):
            indices = lk.select(scores, budget, pool_kernel=pool_kernel)
            expected = python_ref.select(scores, budget, pool_kernel=pool_kernel)
            assert_bitwise(indices, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_poisoned_memory(isa, dtype, seed):
    inputs = make_inputs(heads=6, prompt=333, rows=7, dim=40, dtype=dtype)
    torch.manual_seed(seed)
    first = results_of_all_ops(inputs)
    poison = [torch.full((2**n,), math.nan) for n in range(4, 20) for _ in range(4)]
    del poison
    torch.manual_seed(seed)
    assert_bitwise(results_of_all_ops(inputs), first)


def test_instruction_sets_agree(monkeypatch: pytest.MonkeyPatch):
    """fp32 scores to rounding, and the same lookahead decisions where scores are apart."""
    inputs = make_inputs(prompt=400, dim=64)
    results = []
    for name in ISAS:
        monkeypatch.setenv(VARIABLE, name)
        results.append(lk.score_and_evict(*inputs, 40, pool_kernel=1))
    for result in results[1:]:
        torch.testing.assert_close(result.scores, results[0].scores, rtol=2e-5, atol=1e-9)
        assert torch.equal(result.indices, results[0].indices)


@pytest.mark.parametrize("unset", [False, True])
def test_best_by_default(unset, monkeypatch: pytest.MonkeyPatch):
    if unset:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, "")
    assert info.active_isa() == ISAS[0]


@pytest.mark.parametrize("name", ["avx1024", "AVX2", "portable "])
def test_unknown_name(name, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, name)
    inputs = make_inputs(prompt=20)
    message = f"{VARIABLE} must be one of {', '.join(ISAS)} on this machine, got {name}"
    for call in (
        lambda: lk.lookahead_attention(*inputs),
        lambda: lk.column_scores(*inputs[:2]),
        lambda: lk.prefill_attention(inputs.key, inputs.key, inputs.value, 4),
        lambda: lk.select(torch.rand(2, 2, 20), 4),
        lambda: lk.score_and_evict(*inputs, 4),
    ):
        with pytest.raises(RuntimeError) as caught:
            call()
        assert str(caught.value) == message
