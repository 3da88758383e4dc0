"""The ops inside torch.compile, torch.export and an AOTInductor package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.calls import CALL_NAMES, sample_calls
from support.helpers import assert_bitwise, make_inputs
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import lookaheadkv_kernels as lk


def dense(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A layer around the op: what compilers fuse next to it, and use of all its results."""
    query, key, value = inputs
    evicted = lk.score_and_evict(query * 2, key, value + 1, 24, num_sink=2)
    kept = evicted.scores.gather(2, evicted.indices.long())
    return evicted.key * 3, evicted.value - 1, evicted.indices, kept


class Layer(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        return dense((query, key, value))


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """No guards and no recompile counts from other tests."""
    torch._dynamo.reset()


@pytest.mark.parametrize("name", CALL_NAMES)
def test_compile_every_op(name, device):
    op, args, kwargs = sample_calls(torch.float32, device)[name]
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    assert_bitwise(compiled(*args, **kwargs), op(*args, **kwargs))


def test_compile_static(device):
    inputs = make_inputs(batch=2, prompt=90, dim=16, device=device)
    compiled = torch.compile(dense, fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(tuple(inputs)), dense(tuple(inputs)))


SIZES = ((3, 90), (5, 24), (7, 9), (3, 500))  # (batch, prompt): around the budget


def test_compile_dynamic(device):
    compiled = torch.compile(dense, fullgraph=True, dynamic=True)
    for batch, prompt in SIZES:
        inputs = tuple(make_inputs(batch=batch, prompt=prompt, dim=16, device=device))
        torch.testing.assert_close(compiled(inputs), dense(inputs))


def test_one_graph_for_all_sizes(device):
    """The ops put no guard on sizes. (Inductor may add its own to the code around them.)"""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(dense, fullgraph=True, dynamic=True, backend=counter)
    for batch, prompt in SIZES:
        inputs = tuple(make_inputs(batch=batch, prompt=prompt, dim=16, device=device))
        assert_bitwise(compiled(inputs), dense(inputs))
    assert counter.frame_count == 1


def test_prompt_length_that_tracing_cannot_know(device):
    """Unbacked sizes (from .item(), or a mask): the fake kernel asks nothing about them."""
    query, key, value = make_inputs(batch=2, prompt=90, dim=16, device=device)
    for tensor in (key, value):
        torch._dynamo.decorators.mark_unbacked(tensor, 2)

    def evict(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(lk.score_and_evict(*tensors, 24))

    compiled = torch.compile(evict, fullgraph=True, backend="aot_eager")
    assert_bitwise(compiled(query, key, value), evict(query, key, value))
    shorter = (query, key[:, :, :20], value[:, :, :20])
    assert_bitwise(compiled(*shorter), evict(*shorter))


def test_compiled_result_is_named(device):
    inputs = make_inputs(prompt=30, device=device)

    def evict(*tensors: Tensor) -> lk.Evicted:
        return lk.score_and_evict(*tensors, 9, keep_observation=True)

    result = torch.compile(evict, fullgraph=True, backend="aot_eager")(*inputs)
    assert isinstance(result, lk.Evicted)
    assert_bitwise(result, evict(*inputs))


def test_compiled_training_step(device):
    """The gradient of column_scores inside a compiled loss."""
    query, key, _ = make_inputs(prompt=50, dim=16, device=device)

    def loss(query: Tensor, key: Tensor) -> Tensor:
        return (lk.column_scores(query * 1.5, key) * 100).square().sum()

    query.requires_grad_()
    key.requires_grad_()
    expected = torch.autograd.grad(loss(query, key), (query, key))
    actual = torch.autograd.grad(torch.compile(loss, fullgraph=True)(query, key), (query, key))
    torch.testing.assert_close(actual, expected)


def exported(device: torch.device, dim: Any) -> torch.export.ExportedProgram:
    inputs = tuple(make_inputs(batch=2, prompt=90, dim=16, device=device))
    shapes = {"query": None, "key": {2: dim}, "value": {2: dim}}
    return torch.export.export(Layer(), inputs, dynamic_shapes=shapes)


def test_export_static(device):
    inputs = tuple(make_inputs(prompt=50, device=device))
    program = torch.export.export(Layer(), inputs)
    assert_bitwise(program.module()(*inputs), dense(inputs))


@pytest.mark.parametrize("dim", [torch.export.Dim("keys", min=8), torch.export.Dim.DYNAMIC])
def test_export_dynamic_prompt(dim, device, tmp_path: Path):
    """One program for every prompt length, also after a round trip through a file."""
    program = exported(device, dim)
    assert any(
        node.target is torch.ops.lookaheadkv.score_and_evict.default for node in program.graph.nodes
    )
    torch.export.save(program, tmp_path / "layer.pt2")
    loaded = torch.export.load(tmp_path / "layer.pt2").module()
    for prompt in (10, 24, 25, 300):
        inputs = tuple(make_inputs(batch=2, prompt=prompt, dim=16, device=device))
        torch.testing.assert_close(loaded(*inputs), dense(inputs))


def test_aot_inductor_package(device, tmp_path: Path):
    """A compiled package calls the op, with a prompt length it was not compiled for."""
    program = exported(device, torch.export.Dim("keys", min=8, max=100_000))
    package = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "layer.pt2")
    )
    run = torch._inductor.aoti_load_package(package)
    for prompt in (10, 24, 300):
        inputs = tuple(make_inputs(batch=2, prompt=prompt, dim=16, device=device))
        torch.testing.assert_close(tuple(run(*inputs)), dense(inputs))
