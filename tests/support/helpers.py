"""Inputs in every storage layout, and comparisons: float64 error, bitwise equality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HALF_DTYPES = (torch.float16, torch.bfloat16)
LAYOUTS = ("bhsd", "bshd", "packed", "expanded", "misaligned")

FP32_RELATIVE_ERROR = 1e-5


class Inputs(NamedTuple):
    """Query [B, Hq, L, D], key and value [B, Hkv, N + L, D]."""

    query: Tensor
    key: Tensor
    value: Tensor

    def double(self) -> Inputs:
        return Inputs(*(tensor.double() for tensor in self))

    @property
    def num_prompt(self) -> int:
        return self.key.shape[2] - self.query.shape[2]


def stored(
    shape: Sequence[int], layout: str, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """Random normal [B, H, S, D] in one of LAYOUTS (``packed`` is for make_inputs)."""
    batch, heads, length, dim = shape

    def randn(*sizes: int) -> Tensor:
        return torch.randn(*sizes, dtype=torch.float32).to(device=device, dtype=dtype)

    if layout == "bhsd":
        return randn(batch, heads, length, dim)
    if layout == "bshd":
        return randn(batch, length, heads, dim).transpose(1, 2)
    if layout == "expanded":
        return randn(batch, 1, length, dim).expand(batch, heads, length, dim)
    if layout == "misaligned":
        # Rows that begin at every alignment an element can have.
        return randn(batch, heads, length, dim + 3)[..., 1 : dim + 1]
    raise ValueError(layout)


def make_inputs(
    *,
    batch: int = 1,
    heads: int = 4,
    kv_heads: int = 2,
    prompt: int = 100,
    rows: int = 5,
    dim: int = 64,
    dtype: torch.dtype = torch.float32,
    layout: str = "bhsd",
    device: torch.device | str = "cpu",
) -> Inputs:
    """Random inputs of one call."""
    keys = prompt + rows
    if layout == "packed":
        # What a fused QKV projection gives: [B, S, Hq + 2 Hkv, D], sliced.
        qkv = stored((batch, heads + 2 * kv_heads, keys, dim), "bshd", dtype, device)
        query, key, value = qkv.split([heads, kv_heads, kv_heads], dim=1)
        return Inputs(query[:, :, prompt:], key, value)
    cache = (batch, kv_heads, keys, dim)
    return Inputs(
        stored((batch, heads, rows, dim), layout, dtype, device),
        stored(cache, layout, dtype, device),
        stored(cache, layout, dtype, device),
    )


def lengths(*values: int, device: torch.device | str = "cpu") -> Tensor:
    """int32 [B]."""
    return torch.tensor(values, dtype=torch.int32, device=device)


def max_error(actual: Tensor, reference: Tensor) -> float:
    """max |actual - reference|; NaN anywhere gives NaN, which fails every comparison."""
    if reference.numel() == 0:
        return 0.0
    return float((actual.double() - reference).abs().max())


def max_abs(reference: Tensor) -> float:
    return float(reference.abs().max()) if reference.numel() else 0.0


def assert_fp32_close(actual: Tensor, reference: Tensor) -> None:
    """Relative error of a float32 result against float64, norm-wise: max|err| / max|ref|."""
    assert actual.shape == reference.shape
    assert max_error(actual, reference) <= FP32_RELATIVE_ERROR * max_abs(reference)


def assert_within_twice_eager(actual: Tensor, eager: Tensor, reference: Tensor) -> None:
    """Error at most 2x that of plain PyTorch in the same dtype, both against float64.

    The slack is one unit in the last place of the result's own dtype: with a handful of keys the
    eager code can hit the correctly rounded value by luck, and nothing can be asked to be closer
    than rounding allows.
    """
    assert actual.shape == reference.shape == eager.shape
    slack = torch.finfo(actual.dtype).eps * max_abs(reference)
    assert max_error(actual, reference) <= 2 * max_error(eager, reference) + slack


def assert_accurate(actual: Tensor, eager: Tensor, reference: Tensor, dtype: torch.dtype) -> None:
    """The accuracy rule for inputs of ``dtype``."""
    if dtype == torch.float32:
        assert_fp32_close(actual, reference)
    else:
        assert_within_twice_eager(actual, eager, reference)


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bits as integers, so that NaN equals itself and -0.0 differs from 0.0."""
    as_int = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(as_int[tensor.element_size()])


def assert_bitwise(actual: Sequence[Tensor] | Tensor, expected: Sequence[Tensor] | Tensor) -> None:
    """Same shapes, dtypes and bits."""
    actual = [actual] if isinstance(actual, Tensor) else actual
    expected = [expected] if isinstance(expected, Tensor) else expected
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype and a.shape == e.shape
        assert torch.equal(bits(a), bits(e))
