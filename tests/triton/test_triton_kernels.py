"""What only Triton's kernels have: two ways to load, two ways to select, splits, registration.

Runs where the backend under test is Triton's: on a GPU, or in the interpreter.
"""

from __future__ import annotations

import os

import pytest
import torch
from support.helpers import DTYPES, Inputs, assert_accurate, assert_bitwise, lengths, make_inputs

import lookaheadkv_kernels as lk
from bench.peers.eager import eager_attention
from lookaheadkv_kernels import _outputs, backend, python_ref, triton

pytestmark = pytest.mark.skipif(
    os.environ.get(backend.ENVIRONMENT_VARIABLE) != "triton", reason="not the backend under test"
)


def test_it_is_the_backend(device):
    assert backend.backend_for(device) == "triton"
    assert "triton" in lk.available_backends()


def test_backend_can_be_switched_off_and_on(device):
    """The compiled kernels serve again when Triton's are taken away."""
    if device.type != "cpu":
        pytest.skip("no compiled library to compare with")
    inputs = make_inputs(prompt=100)
    scores = lk.column_scores(*inputs[:2])
    try:
        lk.set_backend("cpu")
        compiled = lk.column_scores(*inputs[:2])
    finally:
        lk.set_backend("triton")
    assert_bitwise(lk.column_scores(*inputs[:2]), scores)
    lk.set_backend(None)
    assert not torch.equal(compiled, scores)  # another order of sums
    torch.testing.assert_close(compiled, scores, rtol=1e-4, atol=0)


def test_prefill_alone_can_be_routed(device):
    """To Triton where it is chosen, to the compiled kernel elsewhere, whatever the arguments."""
    if device.type != "cpu":
        pytest.skip("test_cuda_gpu.py has the route of GPUs")
    calls = [(make_inputs(heads=2, kv_heads=2, prompt=prompt), prompt) for prompt in (80, 120)]
    calls = [(Inputs(torch.cat([i.key] * 2, 1), i.key, i.value), prompt) for i, prompt in calls]

    def results():
        return {p: lk.prefill_attention(*inputs, 9, scale=0.2) for inputs, p in calls}

    ours = results()
    lk.set_backend("cpu")
    try:
        compiled = results()
        longest = calls[1][0].key.shape[2]
        route = triton.route_prefill("cpu", lambda query: query.shape[2] == longest)
        routed = results()
        route._destroy()
        after = results()
    finally:
        lk.set_backend("triton")
    assert not torch.equal(ours[120][0], compiled[120][0])  # another order of sums
    for prompt, expected in ((80, compiled), (120, ours)):
        assert_bitwise(routed[prompt], expected[prompt])
        assert_bitwise(after[prompt], compiled[prompt])


@pytest.mark.parametrize("name", _outputs.OPS)
def test_every_op_is_served(name):
    """No op of the schema is forgotten."""
    key = triton.served_device().upper()
    assert "triton" in torch._C._dispatch_dump(f"lookaheadkv::{name}").partition(f"{key}:")[2]


def unaligned(inputs: Inputs) -> Inputs:
    """The same numbers where the copy engine cannot read them: rows of D + 1 elements."""
    return Inputs(
        *(torch.nn.functional.pad(tensor, (0, 1))[..., : tensor.shape[3]] for tensor in inputs)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_copy_engine_and_plain_loads_agree(dtype, device):
    from lookaheadkv_kernels.triton.target import target_of
    from lookaheadkv_kernels.triton.tiles import descriptor

    inputs = make_inputs(batch=2, prompt=300, dim=40, dtype=dtype, device=device)
    target = target_of(inputs.key)
    assert (descriptor(inputs.key, 32, 64, target) is not None) == target.has_tma
    plain = unaligned(inputs)
    padding = {
        "leftpad_k": lengths(0, 70, device=device),
        "seqused_k": lengths(300, 290, device=device),
    }
    assert descriptor(plain.key, 32, 64, target) is None
    for options in ({}, padding):
        assert_bitwise(
            lk.lookahead_attention(*plain, **options), lk.lookahead_attention(*inputs, **options)
        )
    whole = Inputs(torch.cat([inputs.key] * 2, 1), inputs.key, inputs.value)
    assert_bitwise(lk.prefill_attention(*unaligned(whole), 9), lk.prefill_attention(*whole, 9))


@pytest.mark.parametrize("rows", [32, 100])
def test_prefill_with_several_lookahead_tiles(rows, device):
    """G * L rows that take several tiles, whose column sums are added up."""
    inputs = make_inputs(heads=8, prompt=0, rows=330, dim=128, dtype=torch.bfloat16, device=device)
    result = lk.prefill_attention(*inputs, rows)
    reference = python_ref.prefill_attention(*inputs.double(), rows)
    assert_accurate(result.out, eager_attention(*inputs), reference[0], torch.bfloat16)
    torch.testing.assert_close(result.scores.double(), reference[2], rtol=1e-4, atol=1e-9)


def quantised(*shape: int, device: torch.device) -> torch.Tensor:
    return torch.randint(0, 4, shape, device=device).float()


@pytest.mark.parametrize("budget", [1, 4096, 32_999])
@pytest.mark.parametrize("length", [32_768, 33_000])
def test_select_on_both_sides_of_the_register_limit(length, budget, device):
    """Ties in every chunk of a row; budgets from one entry to nearly all."""
    scores = quantised(1, 1, length, device=device)
    assert_bitwise(lk.select(scores, budget), python_ref.select(scores, budget))


def test_long_padded_rows_with_pins(device):
    scores = torch.rand(2, 1, 40_000, device=device)
    options = {
        "num_sink": 4,
        "num_recent": 30,
        "leftpad_k": lengths(9_000, 39_990, device=device),
        "seqused_k": lengths(31_000, 40_000, device=device),
    }
    for pool in (7, 101):
        assert_bitwise(
            lk.select(scores, 500, pool_kernel=pool, **options),
            python_ref.select(scores, 500, pool_kernel=pool, **options),
        )


def test_offsets_past_two_to_the_31(device):
    """Heads that lie 2^31 elements apart (untouched memory between them costs nothing)."""
    if device.type != "cpu":
        pytest.skip("a GPU would have to hold it all")
    near = make_inputs(prompt=60, dim=16, dtype=torch.float16)
    apart = 2**31 + 64
    memory = torch.empty(apart + near.key.numel(), dtype=torch.float16)

    def spread(tensor: torch.Tensor) -> torch.Tensor:
        far = memory.as_strided(tensor.shape, (0, apart, tensor.shape[3], 1))
        return far.copy_(tensor)

    expected = lk.score_and_evict(*near, 20)
    assert_bitwise(lk.column_scores(near.query, spread(near.key)), expected.scores)
    kept = lk.gather_kv(spread(near.value), spread(near.value), expected.indices)
    assert_bitwise(kept.value, expected.value)
