"""select: exactly the reference's positions, on every kind of score row."""

from __future__ import annotations

import pytest
import torch
from support.helpers import assert_bitwise, lengths
from support.score_rows import ROWS, quantised, softmaxed, special
from torch import Tensor

import lookaheadkv_kernels as lk
from lookaheadkv_kernels import python_ref


def check(scores: Tensor, budget: int, **options: object) -> Tensor:
    indices = lk.select(scores, budget, **options)
    assert_bitwise(indices, python_ref.select(scores, budget, **options))
    return indices


@pytest.mark.parametrize("pool_kernel", [1, 7])
@pytest.mark.parametrize(
    "length, budget",
    [(1, 1), (9, 4), (96, 95), (1000, 64), (5000, 3), (5000, 700), (3000, 1500), (3000, 2000)],
)
@pytest.mark.parametrize("make", ROWS, ids=lambda make: make.__name__)
def test_kinds_of_rows(make, length, budget, pool_kernel, device):
    check(make(2, 2, length).to(device), budget, pool_kernel=pool_kernel)


@pytest.mark.parametrize("budget", [1, 2, 15, 16, 17, 199, 200, 201, 10**6, 2**62])
def test_budgets(budget, device):
    indices = check(torch.randn(1, 3, 200, device=device), budget)
    assert indices.shape == (1, 3, min(budget, 200))


@pytest.mark.parametrize("pool_kernel", [1, 3, 5, 7, 9, 31, 63, 65, 101, 257])
@pytest.mark.parametrize("make", [softmaxed, special], ids=lambda make: make.__name__)
def test_pool_kernels(make, pool_kernel, device):
    for length in (1, 2, 50, 100, 300):
        check(make(1, 2, length).to(device), 20, pool_kernel=pool_kernel)


def test_pool_wider_than_any_row(device):
    scores = torch.randn(1, 1, 30, device=device)
    assert check(scores, 5, pool_kernel=1001).tolist() == [[[0, 1, 2, 3, 4]]]
    assert lk.select(scores, 5, pool_kernel=2**62 + 1).tolist() == [[[0, 1, 2, 3, 4]]]


@pytest.mark.parametrize("num_sink, num_recent", [(4, 0), (0, 16), (4, 16), (20, 20), (3, 500)])
def test_pins(num_sink, num_recent, device):
    for length in (10, 40, 41, 300):
        for make in (softmaxed, quantised):
            check(
                make(2, 2, length).to(device),
                max(40, num_sink + num_recent),
                num_sink=num_sink,
                num_recent=num_recent,
            )


def test_pinned_entries_that_overlap(device):
    """Fewer valid positions than sinks and recents ask for: each is kept once."""
    scores = torch.randn(1, 1, 12, device=device)
    indices = check(scores, 18, num_sink=9, num_recent=9)
    assert indices.tolist() == [[list(range(12))]]


@pytest.mark.parametrize("pins", [{}, {"num_sink": 2, "num_recent": 3}], ids=str)
@pytest.mark.parametrize("make", [softmaxed, quantised, special], ids=lambda make: make.__name__)
def test_padding(make, pins, device):
    scores = make(6, 2, 120).to(device)
    first = lengths(0, 7, 0, 50, 60, 120, device=device)
    last = lengths(120, 120, 33, 52, 60, 120, device=device)
    for budget in (5, 40, 119, 200):
        check(scores, budget, leftpad_k=first, **pins)
        check(scores, budget, seqused_k=last, **pins)
        indices = check(scores, budget, leftpad_k=first, seqused_k=last, **pins)
        assert (indices[4:] == -1).all()


@pytest.mark.parametrize("best", [40, 79], ids=["first", "last"])
def test_wide_pools_at_the_edge_of_padding(best, device):
    """The largest score beside the padding: a pool reaches it from its whole half width inside."""
    scores = torch.zeros(1, 1, 120, device=device)
    scores[..., best] = 1
    padding = {"leftpad_k": lengths(40, device=device), "seqused_k": lengths(80, device=device)}
    for pool_kernel in (33, 61, 101):
        for name, value in padding.items():
            check(scores, 17, pool_kernel=pool_kernel, **{name: value})
        check(scores, 17, pool_kernel=pool_kernel, **padding)


@pytest.mark.parametrize("shape", [(0, 2, 10), (2, 0, 10), (2, 2, 0)])
def test_empty(shape, device):
    indices = lk.select(torch.zeros(shape, device=device), 4)
    assert indices.shape == (shape[0], shape[1], min(4, shape[2]))
    assert indices.dtype == torch.int32


def test_any_strides(device):
    scores = torch.randn(2, 3, 400, device=device)
    expected = python_ref.select(scores, 30)
    for strided in (
        scores.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        scores.repeat_interleave(2, dim=-1)[..., ::2],
        torch.cat([scores, scores], -1)[..., :400],
    ):
        assert not strided.is_contiguous()
        assert_bitwise(lk.select(strided, 30), expected)
    expanded = scores[:, :1].expand(2, 3, 400)
    assert_bitwise(lk.select(expanded, 30), expected[:, :1].expand(2, 3, 30))


def test_long_row(device):
    """Longer than any cache level of a candidate buffer, with ties across the cut."""
    scores = quantised(1, 1, 300_000).to(device)
    check(scores, 50_000, pool_kernel=1)
    check(softmaxed(1, 1, 300_000).to(device), 2048)
