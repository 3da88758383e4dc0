"""Paged caches on Triton's kernels, in its interpreter or on a GPU: a few random layouts of each.

tests/paged/test_paged.py has two thousand; in the interpreter one takes a second.
"""

from __future__ import annotations

import os
from random import Random

import pytest
import torch
from support.helpers import assert_bitwise, lengths
from support.paged_layouts import random_paged, random_selection

import lookaheadkv_kernels as lk
from lookaheadkv_kernels import backend, python_ref

pytestmark = pytest.mark.skipif(
    os.environ.get(backend.ENVIRONMENT_VARIABLE) != "triton", reason="not the backend under test"
)


@pytest.mark.parametrize(
    "dtype, cache, turn",
    [
        (torch.float32, None, 0),
        (torch.bfloat16, None, 1),
        (torch.float32, torch.float8_e4m3fn, 1),
        (torch.float16, torch.float8_e5m2, 2),
        (torch.float32, torch.int8, 3),
    ],
    ids=str,
)
def test_scores_and_selection(dtype, cache, turn, seed, device):
    random = Random(100 * seed + turn)
    batch = random_paged(
        random,
        dtypes=(dtype,),
        cache_dtypes=None if cache is None else (cache,),
        longest=150 if turn == 0 else 40,
        device=device,
    )
    scales = (None, (), (batch.keys[0].shape[2],), batch.keys[0].shape[:3])
    shape = scales[turn]
    scale = {}
    if cache is not None and shape is not None:
        scale["k_scale"] = torch.rand(shape, device=device) + 0.1
    selection = random_selection(random, batch)
    max_budget = selection.pop("max_budget")
    scores = lk.paged_column_scores(*batch.batch, **scale)
    expected = python_ref.paged_column_scores(*batch.batch, **scale)
    rtol, atol = (2e-2, 1e-4) if dtype == torch.bfloat16 else (2e-4, 1e-6)
    torch.testing.assert_close(scores, expected.float(), rtol=rtol, atol=atol)
    result = lk.paged_score_and_select(*batch.batch, max_budget, **scale, **selection)
    kept = python_ref.paged_select(result.scores, *batch.lens[1:], max_budget, **selection)
    assert_bitwise(result[:2], kept)
    assert_bitwise(lk.paged_select(scores, *batch.lens[1:], max_budget, **selection), kept)
    outputs = [torch.full_like(tensor, 7) for tensor in result]
    names = dict(zip(("indices", "kept_lens", "scores"), outputs, strict=True))
    lk.paged_score_and_select_out(*batch.batch[:-1], max_budget, **names, **scale, **selection)
    assert_bitwise(tuple(outputs), tuple(result))


@pytest.mark.parametrize("lse", [False, True], ids=["own_lse", "given_lse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_many_rows(dtype, lse, device):
    """160 folded rows: three tiles of float32, one of 16 bits. Requests have fewer of their own."""
    rows, group, page_size = 40, 4, 16
    own, prompts = (40, 7, 0), (70, 33, 20)
    query = torch.randn(sum(own), group * 2, 32, device=device).to(dtype)
    key = torch.randn(21, page_size, 2, 32, device=device).to(dtype)
    table = torch.randperm(21, device=device).int().view(3, 7)
    starts = lengths(0, 40, 47, 47, device=device)
    seq_lens = lengths(*(a + b for a, b in zip(own, prompts, strict=True)), device=device)
    batch = (query, key, table, starts, seq_lens, rows, 112)
    options = {"lse": torch.rand(sum(own), group * 2, device=device) + 5} if lse else {}
    scores = lk.paged_column_scores(*batch, **options)
    expected = python_ref.paged_column_scores(*batch, **options)
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-6)


def test_log_sum_exp_of_the_caller(seed, device):
    batch = random_paged(Random(seed), dtypes=(torch.float32,), device=device)
    lse = torch.randn(batch.query.shape[:2], device=device).T.contiguous().T + 3
    torch.testing.assert_close(
        lk.paged_column_scores(*batch.batch, lse=lse),
        python_ref.paged_column_scores(*batch.batch, lse=lse),
        rtol=2e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("turn", range(3))
def test_compaction(turn, seed, device):
    """Every byte of the caches, the moved and the others, as the reference leaves them."""
    random = Random(100 * seed + turn)
    dtype = (torch.float16, torch.float32, torch.int8)[turn]
    batch = random_paged(
        random,
        dtypes=(torch.float32 if dtype == torch.float32 else torch.float16,),
        cache_dtypes=(dtype,),
        longest=60,
        layers=2,
        device=device,
    )
    selection = random_selection(random, batch)
    indices, kept_lens, _ = lk.paged_score_and_select(*batch.batch, **selection)
    indices = indices[None].expand(2, *indices.shape)
    kept_lens = kept_lens[None].expand(2, *kept_lens.shape)
    start = None
    if turn % 2:
        start = torch.stack([(batch.seq_lens - kept_lens[0]) // 2, batch.seq_lens - kept_lens[0]])
    caches = [cache for pair in zip(batch.keys, batch.values, strict=True) for cache in pair]
    scales = [torch.rand(cache.shape[:3], device=device) for cache in caches]
    mixed = [tensor for pair in zip(caches, scales, strict=True) for tensor in pair]
    expected = [tensor.clone() for tensor in mixed]
    python_ref.compact_kv_cache(expected, indices, kept_lens, batch.block_table, dst_start=start)
    lk.compact_kv_cache(mixed, indices, kept_lens, batch.block_table, dst_start=start)
    for actual, reference in zip(mixed, expected, strict=True):
        assert torch.equal(actual, reference)


def test_copy_on_evict(device):
    """A shared prefix is read by both requests and written by none."""
    keys = torch.arange(12 * 4 * 2 * 8, device=device).view(12, 4, 2, 8).short()
    before = keys.clone()
    source = lengths(0, 1, 2, 0, 1, 3, device=device).view(2, 3)
    target = lengths(8, 9, 10, 11, device=device).view(2, 2)
    indices = torch.tensor([0, 3, 5, 11], dtype=torch.int32, device=device).expand(1, 2, 2, 4)
    lk.compact_kv_cache([keys], indices, lengths(4, 4, device=device)[None], source, target)
    assert torch.equal(keys[:8], before[:8])
    for r, last in ((0, 2), (1, 3)):
        kept = torch.stack([before[0, 0], before[0, 3], before[1, 1], before[last, 3]])
        assert torch.equal(keys[int(target[r, 0])], kept)
