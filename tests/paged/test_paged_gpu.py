"""Paged caches on a GPU, both backends: large ones, no host sync, graphs, values out of range.

Random layouts run there as well: ``LOOKAHEADKV_BACKEND=cuda pytest tests/paged/test_paged.py``.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from support.helpers import assert_bitwise, lengths
from support.paged_layouts import QUANTISED, random_paged, random_selection
from torch import Tensor

import lookaheadkv_kernels as lk
from lookaheadkv_kernels import python_ref, triton

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or triton.interpreting(), reason="needs a GPU"
    ),
    pytest.mark.usefixtures("gpu_backend"),
]

DEVICE = torch.device("cuda")


def large(dtype: torch.dtype = torch.bfloat16, page_size: int = 16) -> tuple[Any, ...]:
    """Requests of 0 to 9,000 entries at Llama-3.1-8B's shapes, their pages in a random order."""
    seq_lens = (9_000, 40, 0, 4_097)
    pages = [-(-length // page_size) for length in seq_lens]
    blocks = torch.randperm(sum(pages) + 5).int()
    table = torch.full((len(seq_lens), max(pages)), -1, dtype=torch.int32)
    at = 0
    for r, count in enumerate(pages):
        table[r, :count] = blocks[at : at + count]
        at += count
    cache = torch.randn(len(blocks), page_size, 8, 256, device=DEVICE).to(dtype)[..., :128]
    query = torch.randn(32 + 8 + 32, 32, 128, dtype=torch.bfloat16, device=DEVICE)
    return (
        query,
        cache,
        table.to(DEVICE),
        lengths(0, 32, 40, 40, 72, device=DEVICE),
        lengths(*seq_lens, device=DEVICE),
        32,
        9_100,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, *QUANTISED], ids=str)
def test_large_requests(dtype):
    query, cache, *batch = large(torch.float16 if dtype == torch.int8 else dtype)
    scale = {}
    if dtype == torch.int8:
        cache = (cache * 30).round().clamp(-128, 127).to(dtype)
        scale["k_scale"] = torch.rand(8, device=DEVICE) / 15
    scores = lk.paged_column_scores(query, cache, *batch, **scale)
    expected = python_ref.paged_column_scores(query.float(), cache.float(), *batch)
    if dtype == torch.int8:
        numbers = cache.float() * scale["k_scale"][:, None]
        expected = python_ref.paged_column_scores(query.float(), numbers, *batch)
    torch.testing.assert_close(scores, expected, rtol=1e-2, atol=1e-6)
    kept = lk.paged_score_and_select(query, cache, *batch, 512, num_sink=4, **scale)
    reference = python_ref.paged_select(kept.scores, *batch[1:4], 512, num_sink=4)
    assert_bitwise(kept[:2], reference)


@pytest.mark.parametrize("align", ["head", "tail"])
def test_compaction_of_many_layers(align):
    """More caches than one launch takes, of two dtypes, all bytes compared."""
    query, cache, *batch = large()
    kept = lk.paged_score_and_select(query, cache, *batch, 512)
    layers = 40
    caches = [torch.randn_like(cache) for _ in range(layers)]
    caches = [part for own in caches for part in (own, own.sum(-1).float())]
    indices = kept.indices[None].expand(layers, *kept.indices.shape)
    kept_lens = kept.kept_lens[None].expand(layers, -1)
    start = None if align == "head" else batch[2] - kept_lens
    expected = [tensor.clone() for tensor in caches]
    python_ref.compact_kv_cache(expected, indices, kept_lens, batch[0], dst_start=start)
    lk.compact_kv_cache(caches, indices, kept_lens, batch[0], dst_start=start)
    for actual, reference in zip(caches, expected, strict=True):
        assert torch.equal(actual, reference)


def step(query: Tensor, cache: Tensor, batch: list[Any]) -> tuple[Tensor, ...]:
    """Score, select and compact one layer."""
    kept = lk.paged_score_and_select(query, cache, *batch, 512)
    lk.compact_kv_cache([cache], kept.indices[None], kept.kept_lens[None], batch[0])
    return tuple(kept)


def test_no_host_sync():
    query, cache, *batch = large()
    step(query, cache.clone(), batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(query, cache, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_cuda_graph():
    """Captured once, replayed on other values and lengths; one request is padding then."""
    query, cache, *batch = large()
    step(query, cache.clone(), batch)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(query, cache, batch)
    for seq_lens in (batch[2].clone(), lengths(700, 8, 0, 32, device=DEVICE)):
        query.normal_()
        cache.normal_()
        batch[2].copy_(seq_lens)
        other = cache.clone()
        graph.replay()
        assert_bitwise(captured, step(query, other, batch))
        assert torch.equal(cache, other)


def test_values_out_of_range_are_clamped():
    """A GPU cannot report them: results are of no use, but nothing is touched that must not be."""
    query, cache, table, starts, seq_lens, *sizes = large()
    wild = torch.where(table < 0, table, 2**30)
    kept = lk.paged_score_and_select(
        query, cache, wild, starts * 3, seq_lens + 10**6, *sizes, 512, budgets=seq_lens - 5_000
    )
    assert kept.scores.isfinite().all()
    assert int(kept.indices.max()) < sizes[1]
    far = kept.indices[None] + 10**6
    before = cache.clone()
    lk.compact_kv_cache([cache], far, kept.kept_lens[None] + 10**6, wild)
    assert torch.equal(cache, before)


def test_same_bits_every_time():
    batch = random_paged(Random(5), dtypes=(torch.bfloat16,), longest=3_000, device="cuda")
    selection = random_selection(Random(5), batch)
    first = lk.paged_score_and_select(*batch.batch, **selection)
    for _ in range(5):
        assert_bitwise(tuple(lk.paged_score_and_select(*batch.batch, **selection)), tuple(first))
