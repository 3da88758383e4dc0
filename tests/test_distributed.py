"""Two processes and gloo: heads or the sequence sharded, the same choice as in one process."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

import lookaheadkv_kernels as lkv
from lookaheadkv_kernels.distributed import merged_lse, score_and_select_sharded

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not dist.is_gloo_available(), reason="needs gloo"
)
RANKS = 2


class Case(NamedTuple):
    """One prompt, cut in two."""

    lengths: tuple[int, ...]
    budget: int
    rows: int = 4
    group: int = 2
    pool_kernel: int = 7
    dtype: torch.dtype = torch.float32
    equal_keys: bool = False  # all scores equal: only positions decide


CASES = [
    Case((150, 90), 20),
    Case((1, 200), 16),
    Case((200, 2), 16, pool_kernel=5),
    Case((0, 60), 10),
    Case((60, 0), 10),
    Case((3, 3), 4),  # shards shorter than the rows, and than half a window
    Case((2, 1), 8),  # everything stays
    Case((100, 100), 33, rows=32, group=3, pool_kernel=1),
    Case((120, 77), 40, dtype=torch.bfloat16),
    Case((50, 50), 60, equal_keys=True),
    Case((97, 160), 200, group=1),
]


def inputs(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """query [2, Hq, L, D], prompt keys and values [2, 2, N, D], the rows' keys [2, 2, L, D]."""
    generator = torch.Generator().manual_seed(sum(case.lengths) + case.budget)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(case.dtype)

    total = sum(case.lengths)
    query = random(2, 2 * case.group, case.rows, 16)
    key, value = random(2, 2, total, 16), random(2, 2, total, 16)
    if case.equal_keys:
        key = key[:, :, :1].expand_as(key).contiguous()
    return query, key, value, random(2, 2, case.rows, 16)


def work(rank: int, folder: str) -> None:
    """What one process does with every case."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    results: list[Any] = []
    for case in CASES:
        query, key, value, rows_key = inputs(case)
        heads = slice(rank * case.group, (rank + 1) * case.group)
        rows_value = torch.zeros_like(rows_key)
        tensor_parallel = lkv.score_and_evict(
            query[:, heads],
            torch.cat([key, rows_key], dim=2)[:, rank : rank + 1],
            torch.cat([value, rows_value], dim=2)[:, rank : rank + 1],
            case.budget,
            pool_kernel=case.pool_kernel,
        )
        start = sum(case.lengths[:rank])
        shard = slice(start, start + case.lengths[rank])
        sharded = score_and_select_sharded(
            query,
            key[:, :, shard],
            rows_key,
            case.budget,
            case.lengths,
            pool_kernel=case.pool_kernel,
        )
        lse = merged_lse(query, key[:, :, shard], rows_key, 0.25)
        kept = lkv.gather_kv(key[:, :, shard], value[:, :, shard], sharded.indices)
        results.append((tuple(tensor_parallel), tuple(sharded), lse, tuple(kept)))
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[list[Any]]]:
    """Of each case the results of both processes."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=RANKS)
    loaded = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(RANKS)]
    yield [list(pair) for pair in zip(*loaded, strict=True)]


def one_process(case: Case) -> Any:
    query, key, value, rows_key = inputs(case)
    return lkv.score_and_evict(
        query,
        torch.cat([key, rows_key], dim=2),
        torch.cat([value, torch.zeros_like(rows_key)], dim=2),
        case.budget,
        pool_kernel=case.pool_kernel,
    )


@pytest.mark.parametrize("number", range(len(CASES)))
def test_heads_sharded_need_nothing_of_each_other(results: Any, number: int) -> None:
    whole = one_process(CASES[number])
    for rank, (own, *_) in enumerate(results[number]):
        for part, full in zip(own, whole, strict=True):
            assert torch.equal(part, full[:, rank : rank + 1])


@pytest.mark.parametrize("number", range(len(CASES)))
def test_sequence_sharded(results: Any, number: int) -> None:
    case = CASES[number]
    whole = one_process(case)
    ranks = [sharded for _, sharded, *_ in results[number]]
    scores = torch.cat([scores for _, _, scores in ranks], dim=2)
    # From 16-bit keys the op keeps probabilities in 16 bits (docs/architecture.md, "Numbers").
    tolerance = 1e-5 if case.dtype == torch.float32 else 1e-3
    torch.testing.assert_close(scores, whole.scores, rtol=tolerance, atol=1e-7)
    exact = lkv.select(scores, case.budget, pool_kernel=case.pool_kernel)
    for positions, _, _ in ranks:
        assert torch.equal(positions, exact)
    assert torch.equal(exact, whole.indices)

    # Together the ranks hold what one process kept, in order.
    starts = itertools.accumulate(case.lengths, initial=0)
    found = [
        [[start + j for j in row if j >= 0] for row in indices.flatten(0, 1).tolist()]
        for start, (_, indices, _) in zip(starts, ranks, strict=False)
    ]
    joined = [list(itertools.chain(*parts)) for parts in zip(*found, strict=True)]
    assert joined == whole.indices.flatten(0, 1).tolist()
    for (_, indices, _), (kept_key, _) in zip(
        ranks, [kept for *_, kept in results[number]], strict=True
    ):
        empty = indices < 0
        assert bool((empty[:, :, 1:] >= empty[:, :, :-1]).all()), "empty slots are at the end"
        assert torch.equal(kept_key.abs().sum(dim=3) == 0, empty)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_log_sum_exp_of_all_ranks(results: Any, number: int) -> None:
    case = CASES[number]
    query, key, _, rows_key = inputs(case)
    every = torch.cat([key, rows_key], dim=2)
    _, lse, _ = lkv.lookahead_attention(query, every, every, scale=0.25)
    for *_, merged, _ in results[number]:
        torch.testing.assert_close(merged, lse, rtol=1e-5, atol=1e-5)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": 0}, "budget must be >= 1, got 0"),
        ({"pool_kernel": 4}, "pool_kernel must be odd and >= 1, got 4"),
        ({"shard_lengths": [5, 5]}, r"one length a rank \(1\), got 2"),
        ({"shard_lengths": [6]}, "says 6 keys on rank 0, key has 5"),
    ],
)
def test_what_makes_no_sense(alone: None, change: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"budget": 2, "shard_lengths": [5], "pool_kernel": 7} | change
    with pytest.raises(ValueError, match=words):
        score_and_select_sharded(
            torch.randn(1, 2, 3, 8), torch.randn(1, 1, 5, 8), torch.randn(1, 1, 3, 8), **arguments
        )
