"""The ops as citizens of the dispatcher: opcheck, meta tensors, mutation, modes."""

from __future__ import annotations

import pytest
import torch
from support.calls import CALL_NAMES, OPS, sample_calls, tensors_of
from support.helpers import DTYPES, assert_bitwise, lengths, make_inputs
from torch import Tensor
from torch.library import opcheck

import lookaheadkv_kernels as lk


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CALL_NAMES)
def test_opcheck(name, dtype, device):
    """Schema, fake kernel against real, tracing with static and dynamic shapes."""
    op, args, kwargs = sample_calls(dtype, device)[name]
    results = opcheck(op, args, kwargs)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", [name for name in CALL_NAMES if "select" not in name])
def test_opcheck_with_grad(name, device):
    """The same with inputs that require grad; column_scores with its gradient checked too."""
    call = sample_calls(torch.float32, device)[name]
    for tensor in tensors_of(call):
        if tensor.is_floating_point():
            tensor.requires_grad_()
    op, args, kwargs = call
    everything = ("test_schema", "test_autograd_registration", "test_faketensor")
    if name.split()[0] == "column_scores":
        everything += ("test_aot_dispatch_dynamic", "test_aot_dispatch_static")
    results = opcheck(op, args, kwargs, test_utils=everything)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", CALL_NAMES)
def test_inputs_are_left_alone(name, device):
    """No op writes to what it is given, and no result shares memory with it."""
    call = sample_calls(torch.float32, device)[name]
    before = [tensor.clone() for tensor in tensors_of(call)]
    op, args, kwargs = call
    results = op(*args, **kwargs)
    for result in [results] if isinstance(results, Tensor) else results:
        result.fill_(1)
    assert_bitwise(tensors_of(call), before)


@pytest.mark.parametrize("name", CALL_NAMES)
def test_same_bits_every_time(name, device):
    op, args, kwargs = sample_calls(torch.bfloat16, device)[name]
    first = op(*args, **kwargs)
    for _ in range(3):
        assert_bitwise(op(*args, **kwargs), first)


@pytest.mark.parametrize("name", CALL_NAMES)
def test_meta_tensors(name, device):
    """Shapes, dtypes and strides without data."""
    op, args, kwargs = sample_calls(torch.float16, device)[name]

    def to_meta(value: object) -> object:
        return value.to("meta") if isinstance(value, Tensor) else value

    real = op(*args, **kwargs)
    fake = op(*map(to_meta, args), **{key: to_meta(value) for key, value in kwargs.items()})
    pairs = [(real, fake)] if isinstance(real, Tensor) else zip(real, fake, strict=True)
    for expected, actual in pairs:
        assert actual.device.type == "meta"
        assert actual.shape == expected.shape and actual.dtype == expected.dtype
        assert actual.stride() == expected.stride()


@pytest.mark.parametrize("keep_observation", [False, True])
@pytest.mark.parametrize("prompt", [0, 1, 10, 40])
@pytest.mark.parametrize("budget", [5, 10, 15, 40, 100])
def test_fake_shapes_of_every_budget(budget, prompt, keep_observation, device):
    inputs = make_inputs(prompt=prompt, dim=8, device=device)
    real = OPS.score_and_evict(*inputs, budget, keep_observation=keep_observation)
    meta = (tensor.to("meta") for tensor in inputs)
    fake = OPS.score_and_evict(*meta, budget, keep_observation=keep_observation)
    assert [t.shape for t in fake] == [t.shape for t in real]
    assert OPS.select(real[3].to("meta"), budget).shape == OPS.select(real[3], budget).shape


def test_inference_mode(device):
    with torch.inference_mode():
        inputs = make_inputs(prompt=30, device=device)
        result = lk.score_and_evict(*inputs, 9)
    assert result.key.is_inference()
    assert_bitwise(result, lk.score_and_evict(*(t.clone() for t in inputs), 9))


def test_named_results(device):
    inputs = make_inputs(prompt=30, device=device)
    evicted = lk.score_and_evict(*inputs, 9)
    assert evicted._fields == ("key", "value", "indices", "scores")
    assert_bitwise(lk.gather_kv(*inputs[1:], evicted.indices), evicted[:2])
    attention = lk.lookahead_attention(*inputs)
    assert attention._fields == ("out", "lse", "scores")


def test_forwards_every_argument(device):
    """The public functions pass all their options on."""
    inputs = make_inputs(batch=2, prompt=40, device=device)
    query, key, value = inputs
    lse = lk.lookahead_attention(*inputs, scale=0.2).lse
    scoring = {
        "scale": 0.2,
        "leftpad_k": lengths(1, 0, device=device),
        "seqused_k": lengths(30, 35, device=device),
    }
    padding = {name: scoring[name] for name in ("leftpad_k", "seqused_k")}
    pins = {"pool_kernel": 5, "num_sink": 2, "num_recent": 1}
    assert_bitwise(
        lk.lookahead_attention(*inputs, **scoring), OPS.lookahead_attention(*inputs, **scoring)
    )
    assert_bitwise(
        lk.column_scores(query, key, lse, **scoring), OPS.column_scores(query, key, lse, **scoring)
    )
    assert_bitwise(
        lk.prefill_attention(query, key[:, :, :5], value[:, :, :5], 2, scale=0.2),
        OPS.prefill_attention(query, key[:, :, :5], value[:, :, :5], 2, scale=0.2),
    )
    scores = torch.randn(2, 2, 40, device=device)
    assert_bitwise(
        lk.select(scores, 9, **pins, **padding), OPS.select(scores, 9, **pins, **padding)
    )
    options = {"lse": lse, "keep_observation": True, **pins, **scoring}
    assert_bitwise(
        lk.score_and_evict(*inputs, 15, **options), OPS.score_and_evict(*inputs, 15, **options)
    )
    for name in options:
        without = {key: value for key, value in options.items() if key != name}
        changed = lk.score_and_evict(*inputs, 15, **without)
        assert any(
            a.shape != b.shape or not torch.equal(a, b)
            for a, b in zip(changed, lk.score_and_evict(*inputs, 15, **options), strict=True)
        ), name
