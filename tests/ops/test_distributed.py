"""Eviction over processes equals eviction in one: heads shared out, and the sequence shared out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from lookaheadkv_kernels import python_ref, score_and_evict
from lookaheadkv_kernels.distributed import score_and_evict_context_parallel

ROWS, DIM = 5, 16
# (sizes of three runs, dtype, options)
CASES: list[tuple[tuple[int, int, int], torch.dtype, dict[str, Any]]] = [
    ((40, 40, 40), torch.float32, {"budget": 16}),
    ((50, 2, 31), torch.float32, {"budget": 7, "num_sink": 2, "num_recent": 3}),
    ((1, 2, 1), torch.float32, {"budget": 2, "pool_kernel": 9}),
    ((0, 64, 0), torch.float32, {"budget": 9, "scale": 0.7}),
    ((30, 0, 20), torch.bfloat16, {"budget": 12, "pool_kernel": 1}),
    ((9, 12, 3), torch.float16, {"budget": 100}),
    ((0, 0, 0), torch.float32, {"budget": 3}),
]


def tensors(seed: int, prompt: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value with the observation rows' own at the end; the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 6, ROWS, DIM, generator=generator).to(dtype)
    key, value = torch.randn(2, 2, 2, prompt + ROWS, DIM, generator=generator).to(dtype)
    return query, key, value


def worker(rank: int, folder: str) -> None:
    """What every process runs; asserts, so that a failure reaches the parent."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    for seed, (sizes, dtype, options) in enumerate(CASES):
        check_context_parallel(rank, seed, sizes, dtype, dict(options))
    check_tensor_parallel(rank)
    check_refusals(rank)
    dist.destroy_process_group()


def check_context_parallel(
    rank: int, seed: int, sizes: tuple[int, int, int], dtype: torch.dtype, options: dict[str, Any]
) -> None:
    prompt = sum(sizes)
    query, key, value = tensors(seed, prompt, dtype)
    first = sum(sizes[:rank])
    run = slice(first, first + sizes[rank])
    budget = options.pop("budget")
    kept = score_and_evict_context_parallel(
        query,
        key[:, :, run],
        value[:, :, run],
        key[:, :, prompt:],
        budget,
        shard_sizes=sizes,
        **options,
    )
    # Exact scores, from which the reference chooses: equal sets need equal sums, near enough.
    whole = score_and_evict(query, key, value, budget, **options)
    close = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.02, "atol": 1e-4}
    torch.testing.assert_close(kept.scores, whole.scores[:, :, run], **close)
    parts: list[Any] = [None] * 3
    dist.all_gather_object(parts, kept.scores)
    pins = {name: options[name] for name in options if name != "scale"}
    expected = python_ref.select(torch.cat(parts, dim=2), budget, **pins)
    assert torch.equal(kept.indices, expected), (sizes, kept.indices, expected)
    where = kept.indices.long()[..., None].expand(-1, -1, -1, DIM)
    assert torch.equal(kept.key, key.gather(2, where))
    assert torch.equal(kept.value, value.gather(2, where))


def check_tensor_parallel(rank: int) -> None:
    """Each process has one of three KV heads and its two query heads; nothing is sent."""
    generator = torch.Generator().manual_seed(99)
    query = torch.randn(1, 6, ROWS, DIM, generator=generator)
    key, value = torch.randn(2, 1, 3, 70, DIM, generator=generator)
    whole = score_and_evict(query, key, value, 8)
    heads = slice(rank, rank + 1)
    own = score_and_evict(query[:, 2 * rank : 2 * rank + 2], key[:, heads], value[:, heads], 8)
    for ours, all_heads in zip(own, whole, strict=True):
        assert torch.equal(ours, all_heads[:, heads])


def check_refusals(rank: int) -> None:
    query, key, value = tensors(0, 12, torch.float32)
    arguments = (query, key[:, :, :4], value[:, :, :4], key[:, :, 12:])
    for wrong, message in [
        ({"budget": 0}, "budget=0"),
        ({"budget": 2, "num_sink": 3}, "num_sink=3"),
        ({"budget": 2, "pool_kernel": 4}, "pool_kernel .* got 4"),
        ({"budget": 2, "shard_sizes": (6, 6)}, r"\(6, 6\)"),
        ({"budget": 2, "shard_sizes": (5, 5, 5)}, rf"shard_sizes\[{rank}\] is 5, but key has 4"),
    ]:
        with pytest.raises(ValueError, match=message):
            score_and_evict_context_parallel(*arguments, **{"shard_sizes": (4, 4, 4), **wrong})


def test_three_processes_keep_what_one_keeps(tmp_path: Path) -> None:
    mp.spawn(worker, (str(tmp_path),), nprocs=3)
