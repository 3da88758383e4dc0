"""Scoring and selection from paged caches: the reference, the dense ops, and what rows say."""

from __future__ import annotations

from random import Random

import pytest
import torch
from support.calls import OPS, paged_arguments
from support.helpers import DTYPES, assert_bitwise, lengths
from support.paged_layouts import QUANTISED, dense_request, random_paged, random_selection
from torch import Tensor
from torch.library import opcheck

import lookaheadkv_kernels as lk
from lookaheadkv_kernels import python_ref

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Scores within the tolerance of the inputs' dtype."""
    assert actual.shape == expected.shape and actual.dtype == torch.float32
    limit = TOLERANCE[dtype] * float(expected.abs().max() if expected.numel() else 0)
    assert float((actual - expected).abs().max() if expected.numel() else 0) <= limit + 1e-8


def check_layout(random: Random, backend: str, device: torch.device) -> None:
    """One random layout: scores, indices and lengths."""
    batch = random_paged(random, device=device)
    selection = random_selection(random, batch)
    max_budget = selection.pop("max_budget")
    scores = lk.paged_column_scores(*batch.batch)
    assert_close(scores, python_ref.paged_column_scores(*batch.batch), batch.query.dtype)
    for r in range(len(batch.seq_lens)):
        if (dense := dense_request(batch, r)) is not None:
            expected = lk.column_scores(*dense[:2])[0]
            actual = scores[r, :, : expected.shape[1]]
            if backend == "cpu":
                assert_bitwise(actual, expected)
            else:
                torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-6)
    result = lk.paged_score_and_select(*batch.batch, max_budget, **selection)
    expected = python_ref.paged_select(result.scores, *batch.lens[1:], max_budget, **selection)
    assert_bitwise(result[:2], expected)
    assert_bitwise(lk.paged_select(scores, *batch.lens[1:], max_budget, **selection), expected)


# The bar's 2,000 layouts, in parts that fail on their own.
@pytest.mark.parametrize("part", range(20))
def test_random_layouts(part, seed, backend, device):
    for i in range(100):
        check_layout(Random(1_000_003 * seed + i), backend, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cache_dtype", QUANTISED, ids=str)
@pytest.mark.parametrize("kind", ["none", "tensor", "head", "entry"])
def test_quantised_keys(kind, cache_dtype, dtype, seed, device):
    """Against float64; what 8 bits hold is exact in every dtype, so the bound is float32's."""
    for i in range(5):
        batch = random_paged(
            Random(seed + i), dtypes=(dtype,), cache_dtypes=(cache_dtype,), device=device
        )
        sizes = {"none": None, "tensor": (), "head": (2,), "entry": (0, 1, 2)}[kind]
        scale = None
        if sizes is not None:
            shape = [batch.keys[0].shape[dim] for dim in sizes]
            scale = (torch.rand(shape) / 10).to(device)
        elif cache_dtype == torch.int8:
            batch.keys[0].clamp_(-3, 3)
        scores = lk.paged_column_scores(*batch.batch, k_scale=scale)
        exact = python_ref.paged_column_scores(
            batch.query.double(), *batch.batch[1:], k_scale=scale
        )
        limit = 1e-5 if dtype == torch.float32 else 2e-3  # of cached probabilities in 16 bits
        error = (scores.double() - exact).abs().max() if scores.numel() else torch.tensor(0.0)
        assert error <= limit * max(float(exact.abs().max() if exact.numel() else 0.0), 1e-30)


@pytest.mark.parametrize("dtype", QUANTISED, ids=str)
def test_every_8_bit_pattern(dtype, device):
    """Each of the 256 patterns is the number torch says it is, NaN too."""
    cache = torch.zeros(257, 1, 1, 8, dtype=torch.uint8)
    cache[:256, 0, 0, 0] = torch.arange(256)
    cache = cache.view(dtype)
    query = torch.eye(1, 8)[None]
    table, starts, lens = torch.arange(257).int()[None], lengths(0, 1), lengths(257)
    call = [tensor.to(device) for tensor in (query, cache, table, starts, lens)]
    lse = torch.zeros(1, 1, device=device)
    scores = lk.paged_column_scores(*call, 1, 257, lse=lse, scale=0.001)[0, 0, :256]
    expected = (cache[:256, 0, 0, 0].float() * 0.001).exp()
    expected[expected == torch.inf] = torch.nan  # no softmax has an infinite logit
    torch.testing.assert_close(scores.cpu(), expected, rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("head_reduction", ["none", "mean", "max"])
def test_given_lse(head_reduction, seed, device):
    """The engine's log-sum-exp, [Hq, T] transposed as FlashAttention gives it."""
    for i in range(20):
        batch = random_paged(Random(seed + i), dtypes=(torch.float32,), device=device)
        lse = torch.full(batch.query.shape[:2], 7.0, device=device).T.contiguous().T
        requests = python_ref.paged.requests(batch.cu_seqlens_q, batch.seq_lens, batch.num_rows)
        for r, request in enumerate(requests):
            if (dense := dense_request(batch, r)) is not None:
                rows = slice(request.first_row, request.first_row + request.rows)
                lse[rows] = lk.lookahead_attention(*dense).lse[0].T
        torch.testing.assert_close(
            lk.paged_column_scores(*batch.batch, lse=lse),
            lk.paged_column_scores(*batch.batch),
            rtol=1e-5,
            atol=1e-8,
        )
        result = lk.paged_score_and_select(*batch.batch, 9, lse=lse, head_reduction=head_reduction)
        expected = python_ref.paged_select(
            result.scores, *batch.lens[1:], 9, head_reduction=head_reduction
        )
        assert_bitwise(result[:2], expected)


def test_the_dense_op_on_each_request(device):
    """One layer, the same prompt lengths: indices and kept entries of score_and_evict."""
    torch.manual_seed(3)
    page_size, prompt, rows, budget = 16, 70, 8, 20
    cache = torch.randn(2, 20, page_size, 2, 16, device=device)
    table = torch.randperm(20)[:10].view(2, 5).int().to(device)
    query = torch.randn(2 * rows, 4, 16, device=device)
    starts, lens = lengths(0, rows, 2 * rows, device=device), lengths(78, 78, device=device)
    result = lk.paged_score_and_select(
        query, cache[0], table, starts, lens, rows, 78, budget, keep_observation=True
    )
    order = table.long()[:, :, None] * page_size + torch.arange(page_size, device=device)
    key, value = (
        part.reshape(-1, 2, 16)[order.flatten(1)[:, : prompt + rows]].transpose(1, 2)
        for part in cache
    )
    dense = lk.score_and_evict(
        query.view(2, rows, 4, 16).transpose(1, 2), key, value, budget, keep_observation=True
    )
    assert_bitwise(result.indices, dense.indices)
    lk.compact_kv_cache(list(cache), result.indices[None], result.kept_lens[None], table)
    for part, kept in zip(cache, dense[:2], strict=True):
        assert_bitwise(part.reshape(-1, 2, 16)[order.flatten(1)[:, :budget]].transpose(1, 2), kept)


def test_what_rows_say(device):
    """Short, opted-out, rowless, padded and evicted requests, side by side."""
    torch.manual_seed(0)
    cache = torch.randn(50, 4, 1, 8, device=device)
    table = torch.arange(50, device=device, dtype=torch.int32).view(5, 10)
    starts = lengths(0, 3, 6, 6, 6, 9, device=device)
    lens = lengths(11, 33, 30, 0, 40, device=device)
    query = torch.randn(9, 2, 8, device=device)
    budgets = lengths(8, 0, 5, 5, 6, device=device)
    result = lk.paged_score_and_select(
        query, cache, table, starts, lens, 3, 40, 10, budgets=budgets
    )
    assert result.kept_lens.tolist() == [8, 33, 30, 0, 6]
    assert result.indices[0, 0].tolist() == [*range(8), -1, -1]  # 11 less 3 dropped rows: all
    assert (result.indices[1:4] == -1).all()
    assert (result.indices[4, 0, :6] >= 0).all() and (result.indices[4, 0, 6:] == -1).all()
    assert (result.scores[:4] == 0).all() and (result.scores[4, 0, :37] > 0).all()
    host = [
        lk.kept_length(length, count, 3, budget)
        for length, count, budget in zip(
            lens.tolist(), starts.diff().tolist(), budgets.tolist(), strict=True
        )
    ]
    assert host == result.kept_lens.tolist()
    before = cache.clone()
    lk.compact_kv_cache([cache], result.indices[None], result.kept_lens[None], table)
    changed = (cache != before).any(-1).any(-1).nonzero()
    assert set(changed[:, 0].tolist()) <= {40, 41}  # slots 0 .. 5 of the last request


def test_max_seq_len_changes_nothing(seed, device):
    """A bound of the host's, as a captured graph has it, only pads the scores."""
    batch = random_paged(Random(seed), device=device)
    exact = lk.paged_score_and_select(*batch.batch, 9)
    bound = lk.paged_score_and_select(*batch.batch[:-1], batch.max_seq_len + 100, 9)
    assert_bitwise(bound[:2], exact[:2])
    assert_bitwise(bound.scores[..., : batch.max_seq_len], exact.scores)
    assert (bound.scores[..., batch.max_seq_len :] == 0).all()


def out_arguments(device: torch.device) -> dict[str, Tensor]:
    """Poisoned tensors for paged_score_and_select_out on paged_arguments."""
    return {
        "indices": torch.full((3, 2, 12), 77, dtype=torch.int32, device=device),
        "kept_lens": torch.full((3,), 77, dtype=torch.int32, device=device),
        "scores": torch.full((3, 2, 45), torch.nan, device=device),
    }


def test_out_variant_writes_the_same(device):
    paged = paged_arguments(torch.bfloat16, device)
    pages = tuple(paged[name] for name in ("query", "cache", "table", "starts", "lengths"))
    options = {"budgets": lengths(9, 0, 12, device=device), "pool_kernel": 3}
    out = out_arguments(device)
    assert lk.paged_score_and_select_out(*pages, 5, 12, **out, **options) is None
    assert_bitwise(list(out.values()), lk.paged_score_and_select(*pages, 5, 45, 12, **options))


def test_opcheck_of_the_out_variant(device):
    paged = paged_arguments(torch.float32, device)
    pages = tuple(paged[name] for name in ("query", "cache", "table", "starts", "lengths"))
    call = (OPS.paged_score_and_select_out.default, (*pages, 5, 12), out_arguments(device))
    assert set(opcheck(*call).values()) == {"SUCCESS"}


def test_forwards_every_argument(device):
    """The public functions pass all their options on."""
    paged = paged_arguments(torch.float32, device)
    pages = tuple(paged[name] for name in ("query", "table", "starts", "lengths"))
    call = (pages[0], paged["int8"], *pages[1:], 5, 45)
    scoring = {"lse": paged["lse"], "scale": 0.01, "k_scale": paged["k_scale"] / 9}
    kept = {
        "budgets": lengths(9, 0, 12, device=device),
        "pool_kernel": 3,
        "num_sink": 1,
        "num_recent": 1,
        "keep_observation": True,
        "head_reduction": "max",
    }
    assert_bitwise(
        lk.paged_column_scores(*call, **scoring), OPS.paged_column_scores(*call, **scoring)
    )
    lens = (paged["scores"], paged["starts"], paged["lengths"], 5, 12)
    assert_bitwise(lk.paged_select(*lens, **kept), OPS.paged_select(*lens, **kept))
    options = {**scoring, **kept}
    whole = lk.paged_score_and_select(*call, 12, **options)
    assert_bitwise(whole, OPS.paged_score_and_select(*call, 12, **options))
    for name in options:
        without = {key: value for key, value in options.items() if key != name}
        changed = lk.paged_score_and_select(*call, 12, **without)
        assert any(
            a.shape != b.shape or not torch.equal(a, b) for a, b in zip(changed, whole, strict=True)
        ), name


def test_number_of_threads(seed, restore_threads):
    """The same bits whatever the number of threads."""
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        batch = random_paged(Random(seed), longest=3000)
        results.append(lk.paged_score_and_select(*batch.batch, 50))
    assert_bitwise(results[1], results[0])


@pytest.mark.parametrize("name", ["paged_column_scores", "paged_score_and_select"])
def test_backward_is_refused(name, device):
    """Queries that require grad are scored as ever; going back says that there is no gradient."""
    paged = paged_arguments(torch.float32, device)
    pages = tuple(paged[key] for key in ("query", "cache", "table", "starts", "lengths"))
    rest = (5, 45) if name == "paged_column_scores" else (5, 45, 12)
    plain = getattr(lk, name)(*pages, *rest)
    pages[0].requires_grad_()
    result = getattr(lk, name)(*pages, *rest)
    assert_bitwise(result, plain)
    scores = result if isinstance(result, Tensor) else result.scores
    with pytest.raises(RuntimeError, match=f"^lookaheadkv.{name}: has no gradient; "):
        scores.sum().backward()
