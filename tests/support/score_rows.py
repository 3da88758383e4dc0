"""Kinds of score rows [B, Hkv, N] that a Top-K can go wrong on."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

SPECIAL = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 1e-45, -1e-45, 3e38])


def quantised(batch: int, heads: int, length: int) -> Tensor:
    """Few distinct values: almost every comparison is a tie."""
    return torch.randint(0, 4, (batch, heads, length)).float()


def softmaxed(batch: int, heads: int, length: int) -> Tensor:
    return torch.softmax(4 * torch.randn(batch, heads, length), -1)


def special(batch: int, heads: int, length: int) -> Tensor:
    return SPECIAL[torch.randint(0, len(SPECIAL), (batch, heads, length))]


def signed_zeros(batch: int, heads: int, length: int) -> Tensor:
    """0.0 and -0.0 are equal, so position alone decides."""
    return torch.zeros(batch, heads, length).copysign(torch.randn(batch, heads, length))


def neighbours(batch: int, heads: int, length: int) -> Tensor:
    """Floats one bit apart, in random order: any lost bit of the key shows."""
    bits = torch.rand(batch, heads, length).argsort(-1).int() + 0x3A000000
    return bits.view(torch.float32)


def equal(batch: int, heads: int, length: int) -> Tensor:
    return torch.full((batch, heads, length), 0.25)


def rising(batch: int, heads: int, length: int) -> Tensor:
    """Every entry beats all before it."""
    return torch.arange(length, dtype=torch.float32).expand(batch, heads, length)


ROWS: list[Callable[[int, int, int], Tensor]] = [
    torch.randn,
    softmaxed,
    quantised,
    special,
    signed_zeros,
    neighbours,
    equal,
    rising,
]
