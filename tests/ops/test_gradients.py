"""Gradients: column_scores has one, every other op says that it has none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.helpers import (
    DTYPES,
    LAYOUTS,
    Inputs,
    assert_accurate,
    assert_bitwise,
    lengths,
    make_inputs,
)

import lookaheadkv_kernels as lk
from bench.peers.eager import eager_scores
from lookaheadkv_kernels import python_ref

OPS = torch.ops.lookaheadkv


def leaves(inputs: Inputs) -> Inputs:
    return Inputs(*(tensor.detach().requires_grad_() for tensor in inputs))


def check(inputs: Inputs, **options: Any) -> None:
    """The op's gradients against float64, held to eager autograd's error in half precision."""
    dtype = inputs.query.dtype
    query, key, _ = leaves(inputs)
    scores = lk.column_scores(query, key, **options)
    # Of the scores' own size, as a loss gives it: KL of normalised scores divides by them.
    grad = torch.randn_like(scores) * scores.shape[-1]
    actual = torch.autograd.grad(scores, (query, key), grad)
    exact = python_ref.column_scores_backward(
        grad.double(), query.detach().double(), key.detach().double(), **options
    )
    eager = actual
    if dtype != torch.float32:
        eager = torch.autograd.grad(eager_scores(query, key), (query, key), grad.to(dtype))
    for got, plain, reference in zip(actual, eager, exact, strict=True):
        assert got.dtype == dtype
        assert_accurate(got, plain, reference, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [1, 3, 4, 8])
@pytest.mark.parametrize("rows", [1, 5, 32])
def test_backward(rows, group, dtype, device):
    check(
        make_inputs(
            batch=2, heads=2 * group, prompt=203, rows=rows, dim=40, dtype=dtype, device=device
        )
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", [8, 72, 128, 256])
def test_backward_dim_and_layout(dim, layout, device):
    check(make_inputs(heads=4, prompt=100, dim=dim, layout=layout, device=device))


@pytest.mark.parametrize("prompt", [1, 2, 91, 95, 96, 97, 763, 767, 768, 769, 1531, 1536, 1537])
def test_backward_tile_edges(prompt, device):
    check(make_inputs(heads=3, kv_heads=1, prompt=prompt, dim=16, device=device))


def test_backward_of_padded_batch_and_scale(device):
    inputs = make_inputs(batch=4, prompt=150, device=device)
    padding = {
        "leftpad_k": lengths(0, 20, 0, 75, device=device),
        "seqused_k": lengths(150, 150, 99, 75, device=device),
    }
    check(inputs, scale=0.2, **padding)
    query, key, _ = leaves(inputs)
    lk.column_scores(query, key, **padding).square().sum().backward()
    assert key.grad is not None
    assert (key.grad[1, :, :20] == 0).all() and (key.grad[2, :, 99:150] == 0).all()


@pytest.mark.parametrize("batch, prompt", [(0, 20), (2, 0)])
def test_backward_of_nothing(batch, prompt, device):
    query, key, _ = leaves(make_inputs(batch=batch, prompt=prompt, device=device))
    grads = torch.autograd.grad(lk.column_scores(query, key).sum(), (query, key))
    assert_bitwise(grads, (torch.zeros_like(query), torch.zeros_like(key)))


def test_given_lse_is_a_constant_of_these_inputs(device):
    """The gradient is that of the whole softmax, and none goes to lse."""
    inputs = make_inputs(prompt=100, device=device)
    lse = lk.lookahead_attention(*inputs).lse.requires_grad_()
    query, key, _ = leaves(inputs)
    own = torch.autograd.grad(lk.column_scores(query, key).square().sum(), (query, key))
    scores = lk.column_scores(query, key, lse)
    *given, to_lse = torch.autograd.grad(
        scores.square().sum(), (query, key, lse), allow_unused=True
    )
    assert to_lse is None
    for a, b in zip(given, own, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_grad_scores_of_any_strides(device):
    inputs = make_inputs(batch=2, prompt=70, device=device)
    grad = torch.randn(70, 2, 2, device=device).permute(1, 2, 0)
    assert not grad.is_contiguous()
    assert_bitwise(
        OPS.column_scores_backward(grad, inputs.query, inputs.key),
        OPS.column_scores_backward(grad.contiguous(), inputs.query, inputs.key),
    )


def test_only_what_requires_grad_gets_one(device):
    query, key, _ = make_inputs(device=device)
    key.requires_grad_()
    lk.column_scores(query, key).sum().backward()
    assert query.grad is None and key.grad is not None
    with torch.no_grad():
        assert not lk.column_scores(query, key).requires_grad


def test_a_training_step_lowers_the_loss(device):
    """Gradient descent on a KL loss of normalised scores, as the lookahead modules are trained."""
    query, key, _ = make_inputs(prompt=60, device=device)
    target = torch.softmax(torch.randn(1, 2, 60, device=device), -1)
    query.requires_grad_()
    losses = []
    for _ in range(30):
        scores = lk.column_scores(query, key)
        log_prediction = (scores / scores.sum(-1, keepdim=True)).log()
        loss = torch.nn.functional.kl_div(log_prediction, target, reduction="sum")
        losses.append(loss.item())
        (grad,) = torch.autograd.grad(loss, query)
        query = (query - 4.0 * grad).detach().requires_grad_()
    assert losses[-1] < 0.8 * losses[0]


def call(name: str, inputs: Inputs) -> torch.Tensor:
    """A float result of the op, from inputs that require grad."""
    query, key, value = inputs
    if name == "lookahead_attention":
        return lk.lookahead_attention(query, key, value).out
    if name == "prefill_attention":
        return lk.prefill_attention(key, key, value, 3).scores
    if name == "gather_kv":
        indices = torch.zeros(1, 2, 4, dtype=torch.int32, device=key.device)
        return lk.gather_kv(key, value, indices).value
    if name == "column_scores_backward":
        grad = torch.ones(1, 2, 20, device=key.device)
        return OPS.column_scores_backward(grad, query, key)[0]
    return lk.score_and_evict(query, key, value, 4).key


NOT_DIFFERENTIABLE = [
    "lookahead_attention",
    "prefill_attention",
    "gather_kv",
    "column_scores_backward",
    "score_and_evict",
]


def message(name: str) -> str:
    return (
        f"^lookaheadkv.{name}: has no gradient; lookaheadkv.column_scores is the differentiable op$"
    )


@pytest.mark.parametrize("name", NOT_DIFFERENTIABLE)
def test_no_gradient(name, device):
    inputs = leaves(make_inputs(prompt=20, device=device))
    result = call(name, inputs)
    assert result.requires_grad
    with pytest.raises(RuntimeError, match=message(name)):
        result.sum().backward()
    with torch.no_grad():
        assert not call(name, inputs).requires_grad


@pytest.mark.parametrize("name", NOT_DIFFERENTIABLE)
def test_no_gradient_when_compiled(name, device):
    """Compiling with inputs that require grad works; only running the backward raises."""
    inputs = leaves(make_inputs(prompt=20, device=device))
    result = torch.compile(call, fullgraph=True, backend="aot_eager")(name, inputs)
    torch.testing.assert_close(result, call(name, inputs))
    with pytest.raises(RuntimeError, match=message(name)):
        result.sum().backward()


def test_no_second_derivative(device):
    query, key, _ = leaves(make_inputs(prompt=20, device=device))
    scores = lk.column_scores(query, key)
    (first,) = torch.autograd.grad(scores.square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match=message("column_scores_backward")):
        first.sum().backward()


def test_indices_are_not_differentiable(device):
    scores = torch.randn(1, 2, 20, device=device, requires_grad=True)
    assert not lk.select(scores, 4).requires_grad
    inputs = leaves(make_inputs(device=device))
    assert not lk.score_and_evict(*inputs, 4).indices.requires_grad
