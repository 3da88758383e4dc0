"""Compaction in place: the reference's bytes, everywhere, from any layout to any place."""

from __future__ import annotations

from random import Random

import pytest
import torch
from support.calls import OPS
from support.helpers import DTYPES, bits, lengths
from support.paged_layouts import QUANTISED, Paged, random_paged
from torch import Tensor
from torch.library import opcheck

import lookaheadkv_kernels as lk
from bench.memory import peak_extra_bytes
from lookaheadkv_kernels import python_ref

EVERY_DTYPE = (*DTYPES, *QUANTISED, torch.float64)


def kept_of(random: Random, batch: Paged, heads: int, slots: int) -> tuple[Tensor, Tensor]:
    """Random ascending positions of every layer, [num_layers, R, heads, slots], and their counts.

    Now and then a request takes no part: all of its indices are -1, its length is whole.
    """
    layers, requests = len(batch.keys), len(batch.seq_lens)
    indices = torch.full((layers, requests, heads, slots), -1, dtype=torch.int32)
    kept_lens = torch.zeros(layers, requests, dtype=torch.int32)
    for layer in range(layers):
        for r, length in enumerate(batch.seq_lens.tolist()):
            if random.random() < 0.2:
                kept_lens[layer, r] = length
                continue
            count = random.randint(0, min(length, slots))
            kept_lens[layer, r] = count
            for h in range(heads):
                chosen = sorted(random.sample(range(length), count))
                indices[layer, r, h, :count] = torch.tensor(chosen, dtype=torch.int32)
    return indices, kept_lens


def destination(
    random: Random, batch: Paged, kept_lens: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """In place or into fresh blocks; at the head, at the tail or anywhere between."""
    requests, pages = batch.block_table.shape
    page_size = batch.keys[0].shape[1]
    table = None
    if random.random() < 0.4:
        spare = sorted(set(range(len(batch.keys[0]))) - set(batch.block_table.flatten().tolist()))
        table = batch.block_table.clone()
        for r in range(requests):  # copy on evict, as far as there are spare blocks
            for place in range(pages):
                if spare and random.random() < 0.5:
                    table[r, place] = spare.pop()
    room = batch.seq_lens[None] - kept_lens
    align = random.choice(("head", "tail", "between"))
    if align == "head":
        return table, None
    if align == "tail":
        return table, room.clamp(min=0)
    most = (pages * page_size - kept_lens).clamp(min=0)
    return table, (torch.rand(most.shape) * (most + 1)).to(torch.int32).clamp(max=most)


def moved(batch: Paged, function, *args, **kwargs) -> list[Tensor]:
    """The bytes of the caches' whole memory after ``function`` ran on a copy of them."""
    copies = [tensor.clone() for tensor in batch.storages]
    views = []
    for cache in (
        tensor for layer in zip(batch.keys, batch.values, strict=True) for tensor in layer
    ):
        storage = cache.untyped_storage().data_ptr()
        at = [t.untyped_storage().data_ptr() for t in batch.storages].index(storage)
        views.append(copies[at].as_strided(cache.shape, cache.stride(), cache.storage_offset()))
    function(views, *args, **kwargs)
    return [bits(tensor) for tensor in copies]


def check_layout(random: Random) -> None:
    """One random layout: the whole memory of the caches, byte for byte."""
    batch = random_paged(
        random,
        cache_dtypes=EVERY_DTYPE,
        longest=random.choice((10, 60)),
        layers=random.randint(1, 2),
    )
    heads = batch.keys[0].shape[2] if random.random() < 0.7 else 1
    indices, kept_lens = kept_of(random, batch, heads, random.randint(0, 40))
    table, start = destination(random, batch, kept_lens)
    call = (indices, kept_lens, batch.block_table, table)
    actual = moved(batch, lk.compact_kv_cache, *call, dst_start=start)
    expected = moved(batch, python_ref.compact_kv_cache, *call, dst_start=start)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


# The bar's 2,000 layouts, in parts that fail on their own.
@pytest.mark.parametrize("part", range(20))
def test_random_layouts(part, seed):
    for i in range(100):
        check_layout(Random(1_000_003 * seed + i))


def pages(requests: int, count: int, page_size: int = 4) -> tuple[Tensor, Tensor]:
    """A cache [num_blocks, page_size, 2, 8] and a table of ``count`` pages for each request."""
    cache = torch.randn(2 * requests * count, page_size, 2, 8)
    return cache, torch.arange(requests * count, dtype=torch.int32).view(requests, count)


def positions(*rows: list[int]) -> tuple[Tensor, Tensor]:
    """indices [1, R, 1, K] and kept_lens [1, R] of one list for each request."""
    most = max(map(len, rows))
    padded = [[*row, *[-1] * (most - len(row))] for row in rows]
    return torch.tensor([[[row] for row in padded]]).int(), lengths(*map(len, rows))[None]


def test_nothing_else_is_written():
    """Every byte outside the destination slots, checked without the reference."""
    cache, table = pages(1, 5)
    before = cache.clone()
    lk.compact_kv_cache([cache], *positions([2, 3, 9, 17]), table, dst_start=lengths(6)[None])
    flat, was = cache.flatten(0, 1), before.flatten(0, 1)
    assert torch.equal(flat[6:10], was[[2, 3, 9, 17]])
    flat[6:10] = was[6:10]
    assert torch.equal(cache, before)


@pytest.mark.parametrize("start", [0, 7, 20, 33, 40])
def test_overlapping_moves(start):
    """60 of 100 entries move to a place that overlaps their sources, up and down at once."""
    cache, table = pages(1, 25)
    kept = sorted(Random(start).sample(range(100), 60))
    was = cache.flatten(0, 1)[:100].clone()
    lk.compact_kv_cache([cache], *positions(kept), table, dst_start=lengths(start)[None])
    assert torch.equal(cache.flatten(0, 1)[start : start + 60], was[kept])


def test_shared_prefix_survives_copy_on_evict():
    """Two requests share three pages; one is evicted into pages of its own."""
    cache, table = pages(2, 5)
    table[1, :3] = table[0, :3]
    kept = positions([1, 5, 8, 13, 19], [])
    kept[1][0, 1] = 20  # request 1 takes no part, but lives
    fresh = table.clone()
    fresh[0] = torch.arange(15, 20)
    before = cache.clone()
    lk.compact_kv_cache([cache], *kept, table, fresh)
    assert torch.equal(cache[:15], before[:15])
    assert torch.equal(cache[15:].flatten(0, 1)[:5], before.flatten(0, 1)[[1, 5, 8, 13, 19]])


def test_scales_move_like_payload():
    """K, V and a scale for each entry and head of both: four parts a layer, two layers."""
    torch.manual_seed(0)
    payload = torch.randint(-128, 128, (2, 2, 6, 4, 3, 8), dtype=torch.int8)
    scales = torch.rand(2, 2, 6, 4, 3)
    table = torch.tensor([[4, 2, 5]], dtype=torch.int32)
    indices = torch.tensor([[[[0, 7, 11]] * 3], [[[2, 3, 4]] * 3]], dtype=torch.int32)
    kept_lens = lengths(3, 3)[:, None]
    parts = [tensor for i in range(2) for tensor in (*payload[i], *scales[i])]
    was = [part[[4, 2, 5]].flatten(0, 1) for part in parts]
    lk.compact_kv_cache(parts, indices, kept_lens, table)
    for at, (part, before) in enumerate(zip(parts, was, strict=True)):
        kept = indices[at // 4, 0, 0].long()
        assert torch.equal(part[4, :3], before[kept])


def test_far_slots():
    """Offsets past 2^31 elements, and past 2^32 bytes."""
    memory = torch.empty(2**31 + 2**20, dtype=torch.bfloat16)
    cache = memory.as_strided((3, 4, 2, 8), (2**30 + 2**18, 16, 8, 1))
    cache.copy_(torch.randn(cache.shape))
    table = torch.tensor([[2, 0, 1]], dtype=torch.int32)
    was = cache[[2, 0, 1]].flatten(0, 1)
    lk.compact_kv_cache([cache], *positions([3, 9, 11]), table, dst_start=lengths(7)[None])
    assert torch.equal(cache[[2, 0, 1]].flatten(0, 1)[7:10], was[[3, 9, 11]])
    query, call = torch.randn(1, 2, 8).bfloat16(), (table, lengths(0, 1), lengths(12), 1, 12)
    scores = lk.paged_column_scores(query, cache.contiguous(), *call)
    assert torch.equal(lk.paged_column_scores(query, cache, *call), scores)


def test_opcheck():
    cache, table = pages(2, 5)
    indices, kept_lens = positions([1, 5, 8], [0, 2, 3])
    call = ([cache, cache.clone()], indices, kept_lens, table, None)
    results = opcheck(OPS.compact_kv_cache.default, call, {"dst_start": lengths(3, 0)[None]})
    assert set(results.values()) == {"SUCCESS"}


def test_compiled():
    """Functionalised and back: the compiled program writes the caller's caches."""
    cache, table = pages(1, 5)
    expected = cache.clone()
    call = (*positions([2, 9, 17]), table)

    def step(cache: Tensor) -> Tensor:
        lk.compact_kv_cache([cache], *call)
        return cache[0].sum()

    total = step(expected)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(cache), total)
    assert torch.equal(cache, expected)


def test_extra_memory_is_small():
    """At most 1 MiB above the caches while 8 layers of 16 MB each are compacted."""
    caches = [torch.randn(256, 16, 8, 64).bfloat16() for _ in range(16)]
    table = torch.arange(256, dtype=torch.int32)[None]
    kept = torch.arange(0, 4096, 4, dtype=torch.int32).expand(8, 1, 8, 1024).contiguous()
    call = (caches, kept, torch.full((8, 1), 1024, dtype=torch.int32), table)
    lk.compact_kv_cache(*call)  # what is allocated once and kept
    assert peak_extra_bytes(lambda: lk.compact_kv_cache(*call)) <= 2**20
