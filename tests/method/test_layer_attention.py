"""Attention of a cache's newest rows by the project's kernels, and growing without copies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from support.tiny_model import random_modules, tiny_llama

from lookaheadkv_kernels import column_scores
from lookaheadkv_kernels.integrations.transformers import Eviction
from lookaheadkv_kernels.integrations.transformers.attention import attach
from lookaheadkv_kernels.integrations.transformers.cache import EvictableLayer
from lookaheadkv_kernels.integrations.transformers.growing import LEAST_SPACE
from lookaheadkv_kernels.integrations.transformers.layer_attention import attend_newest, served
from lookaheadkv_kernels.integrations.transformers.masks import bottom_right_mask
from lookaheadkv_kernels.policies import LookaheadPolicy
from lookaheadkv_kernels.policies.base import Kept, LayerCall

DIM = 16
SCALE = 0.3


def tensors(rows: int, stored: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value; the latter two as slices of something longer."""
    query = torch.randn(2, 6, rows, DIM).to(dtype)
    key, value = torch.randn(2, 2, 2, stored + 5, DIM).to(dtype)[:, :, :, :stored]
    return query, key, value


def exact(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Output [B, q, Hq, D] and log-sum-exp in float64."""
    query, key, value = query.double(), key.double(), value.double()
    key, value = key.repeat_interleave(3, 1), value.repeat_interleave(3, 1)
    logits = query @ key.transpose(-1, -2) * SCALE
    seen = bottom_right_mask(query.shape[2], key.shape[2], None, query.device)
    if seen is not None:
        logits = logits.masked_fill(~seen, -torch.inf)
    return (logits.softmax(-1) @ value).transpose(1, 2), logits.logsumexp(-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "stored"), [(1, 1), (1, 77), (5, 77), (32, 200), (77, 77)])
def test_sixteen_bit_rows_are_attended_by_the_kernels(
    rows: int, stored: int, dtype: torch.dtype
) -> None:
    query, key, value = tensors(rows, stored, dtype)
    out, lse = attend_newest(SCALE, query, key, value, None)
    expected, expected_lse = exact(query, key, value)
    plain = attend_newest(SCALE, query.requires_grad_(), key, value, None)
    assert plain.lse is None  # a gradient is wanted: PyTorch's own
    assert lse is not None
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)
    error = (out.double() - expected).abs().max()
    least = torch.finfo(dtype).eps * expected.abs().max()
    assert error <= 2 * (plain.out.double() - expected).abs().max() + least


def test_float32_and_padding_stay_with_pytorch() -> None:
    query, key, value = tensors(3, 40, torch.float32)
    out, lse = attend_newest(SCALE, query, key, value, None)
    assert lse is None and not served(query, key, value)
    torch.testing.assert_close(out.double(), exact(query, key, value)[0], rtol=1e-4, atol=1e-5)
    query, key, value = (t.bfloat16() for t in (query, key, value))
    valid = torch.ones(2, 40, dtype=torch.bool)
    valid[1, :7] = False
    out, lse = attend_newest(SCALE, query, key, value, valid)
    assert lse is None
    without = exact(query[1:], key[1:, :, 7:], value[1:, :, 7:])[0]
    torch.testing.assert_close(out[1:].double(), without, rtol=0.05, atol=0.05)


@torch.no_grad()
def test_a_cache_grows_in_place_and_forks_do_not_see_each_other() -> None:
    steps = [torch.randn(1, 2, rows, DIM) for rows in (9, 1, 1, 3, 1)]
    layer = EvictableLayer()
    for step in steps[:3]:
        layer.update(step, -step)
    place = layer.keys.data_ptr()
    fork, third = layer.fork(), layer.fork()
    layer.update(steps[3], -steps[3])
    fork.update(steps[4], -steps[4])
    assert layer.keys.data_ptr() == place != fork.keys.data_ptr()
    torch.testing.assert_close(layer.keys, torch.cat(steps[:4], 2), rtol=0, atol=0)
    torch.testing.assert_close(layer.values, -torch.cat(steps[:4], 2), rtol=0, atol=0)
    both = torch.cat([*steps[:3], steps[4]], 2)
    torch.testing.assert_close(fork.keys, both, rtol=0, atol=0)
    torch.testing.assert_close(third.keys, torch.cat(steps[:3], 2), rtol=0, atol=0)
    for _ in range(LEAST_SPACE + 1):  # over the end of the space
        layer.update(steps[1], -steps[1])
    assert layer.keys.data_ptr() != place
    assert layer.keys.shape[2] == layer.get_seq_length() == 14 + LEAST_SPACE + 1
    torch.testing.assert_close(layer.keys[:, :, :14], torch.cat(steps[:4], 2), rtol=0, atol=0)


def test_what_inference_mode_stored_goes_on_outside_of_it() -> None:
    layer = EvictableLayer()
    with torch.inference_mode():
        for _ in range(2):
            layer.update(*torch.ones(2, 1, 2, 3, DIM))
    with torch.no_grad():
        layer.update(*torch.ones(2, 1, 2, 1, DIM))
    assert layer.keys.shape[2] == 7 and layer.keys.eq(1).all()


def test_what_backward_needs_is_not_written_to() -> None:
    layer = EvictableLayer()
    layer.update(*torch.randn(2, 1, 2, 4, DIM))
    weight = torch.randn(1, 2, 1, DIM, requires_grad=True)
    key, _ = layer.update(*torch.randn(2, 1, 2, 1, DIM))
    loss = (key * weight).sum()
    layer.update(*torch.randn(2, 1, 2, 1, DIM))
    loss.backward()
    assert weight.grad is not None


@torch.no_grad()
def test_space_is_given_back_when_entries_are_evicted() -> None:
    layer = EvictableLayer()
    layer.update(*torch.randn(2, 1, 2, 400, DIM))
    layer.update(*torch.randn(2, 1, 2, 1, DIM))
    kept = layer.keys[:, :, :8].clone()
    layer.keep(kept, kept.clone(), torch.arange(8, dtype=torch.int32).expand(1, 2, 8), None, 0)
    assert layer.keys.untyped_storage().nbytes() == kept.nbytes
    layer.update(*torch.randn(2, 1, 2, 1, DIM))
    assert layer.keys.untyped_storage().nbytes() < 2 * (8 + LEAST_SPACE) * kept.nbytes // 8


@pytest.mark.parametrize("mode", ["appended", "extend"])
def test_policies_score_with_the_log_sum_exp_of_the_attention(mode: str) -> None:
    model = tiny_llama().bfloat16()
    modules = random_modules(model, num_lookahead=4).bfloat16()
    calls: list[LayerCall] = []
    scores: list[Tensor] = []

    class Watched(LookaheadPolicy):
        def evict(self, call: LayerCall) -> Kept:
            kept = super().evict(call)
            calls.append(call)
            assert kept.scores is not None
            scores.append(kept.scores)
            return kept

    attach(model)
    Eviction(model, Watched(modules, mode=mode)).prefill(torch.arange(7, 52)[None], budget=8)
    assert len(calls) == 3
    for call, found in zip(calls, scores, strict=True):
        assert call.lse is not None and call.lse.shape[2] >= 4
        expected = column_scores(call.query[:, :, -4:], call.key, scale=call.scale)
        torch.testing.assert_close(found, expected, rtol=0.02, atol=1e-4)
