"""gather_kv: rows copied bit for bit."""

from __future__ import annotations

import pytest
import torch
from support.helpers import DTYPES, LAYOUTS, assert_bitwise, make_inputs
from torch import Tensor

import lookaheadkv_kernels as lk
from lookaheadkv_kernels import python_ref


def random_indices(batch: int, heads: int, kept: int, keys: int) -> Tensor:
    """Any order, repeats and empty slots included."""
    return torch.randint(-1, keys, (batch, heads, kept), dtype=torch.int32)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", [8, 24, 64, 72, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows(dtype, dim, layout, device):
    _, key, value = make_inputs(
        batch=2, kv_heads=2, prompt=95, dim=dim, dtype=dtype, layout=layout, device=device
    )
    indices = random_indices(2, 2, 37, 100).to(device)
    kept = lk.gather_kv(key, value, indices)
    assert kept.key.is_contiguous() and kept.value.is_contiguous()
    assert_bitwise(kept, python_ref.gather_kv(key, value, indices))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_pattern_survives(dtype, device):
    """NaN payloads, infinities, -0.0 and subnormals are copied, not computed with."""
    size = torch.finfo(dtype).bits // 8
    key, value = (
        torch.randint(0, 256, (1, 2, 300, 64 * size), dtype=torch.uint8, device=device).view(dtype)
        for _ in range(2)
    )
    indices = random_indices(1, 2, 200, 300).clamp(min=0).to(device)
    where = indices.long()[..., None].expand(-1, -1, -1, 64)
    kept = lk.gather_kv(key, value, indices)
    as_int = {2: torch.int16, 4: torch.int32}[size]
    assert torch.equal(kept.key.view(as_int), key.view(as_int).gather(2, where))
    assert torch.equal(kept.value.view(as_int), value.view(as_int).gather(2, where))


def test_empty_slots_are_zero(device):
    _, key, value = make_inputs(device=device)
    kept = lk.gather_kv(key, value, torch.full((1, 2, 9), -1, dtype=torch.int32, device=device))
    assert_bitwise(kept, [torch.zeros(1, 2, 9, 64, device=device)] * 2)


def test_indices_of_any_strides(device):
    _, key, value = make_inputs(batch=2, device=device)
    indices = random_indices(2, 2, 40, 105).to(device)
    expected = lk.gather_kv(key, value, indices)
    transposed = indices.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert_bitwise(lk.gather_kv(key, value, transposed), expected)
    spread = indices.repeat_interleave(2, dim=-1)[..., ::2]
    assert_bitwise(lk.gather_kv(key, value, spread), expected)


@pytest.mark.parametrize(
    "batch, keys, kept", [(0, 10, 3), (2, 0, 0), (2, 10, 0), (1, 0, 4)], ids=str
)
def test_empty(batch, keys, kept, device):
    key, value = torch.randn(2, batch, 3, keys, 16, device=device)
    indices = torch.full((batch, 3, kept), -1, dtype=torch.int32, device=device)
    result = lk.gather_kv(key, value, indices)
    assert_bitwise(result, [torch.zeros(batch, 3, kept, 16, device=device)] * 2)


def test_key_and_value_of_different_layout(device):
    _, key, _ = make_inputs(layout="bshd", device=device)
    _, _, value = make_inputs(layout="misaligned", device=device)
    indices = random_indices(1, 2, 20, 105).to(device)
    assert_bitwise(lk.gather_kv(key, value, indices), python_ref.gather_kv(key, value, indices))
