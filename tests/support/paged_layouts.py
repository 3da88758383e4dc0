"""Random paged caches: every page size, storage and length, and what the ops are asked of them."""

from __future__ import annotations

import math
from random import Random
from typing import Any, NamedTuple

import torch
from lookaheadkv_kernels.python_ref import paged
from support.helpers import DTYPES, lengths
from torch import Tensor

STORAGES = ("nhd", "hnd", "packed", "packed_hnd", "pitched", "layers")
QUANTISED = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)


class Paged(NamedTuple):
    """One batch of requests and the caches of its layers."""

    query: Tensor  # [T, Hq, D]
    keys: list[Tensor]  # per layer [num_blocks, page_size, Hkv, D]
    values: list[Tensor]
    storages: list[Tensor]  # the memory that keys and values view, whole
    block_table: Tensor
    cu_seqlens_q: Tensor
    seq_lens: Tensor
    num_rows: int
    max_seq_len: int

    @property
    def batch(self) -> tuple[Any, ...]:
        """The positional arguments of the scoring ops, for the first layer."""
        return (self.query, self.keys[0], *self.lens[:3], self.num_rows, self.max_seq_len)

    @property
    def lens(self) -> tuple[Any, ...]:
        return (self.block_table, self.cu_seqlens_q, self.seq_lens, self.num_rows)


def quantised(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Random numbers in a dtype of 8 bits."""
    if dtype == torch.int8:
        return (numbers * 40).round().clamp(-128, 127).to(torch.int8)
    return numbers.to(dtype)


def layer_caches(
    storage: str, shape: tuple[int, int, int, int], dtype: torch.dtype, layers: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Keys and values of each layer, logical [num_blocks, page_size, Hkv, D], and their memory."""
    blocks, page_size, heads, dim = shape

    def randn(*sizes: int) -> Tensor:
        numbers = torch.randn(*sizes)
        return quantised(numbers, dtype) if dtype in QUANTISED else numbers.to(dtype)

    if storage == "layers":  # [num_layers, 2, num_blocks, page_size, Hkv, D]
        whole = randn(layers, 2, *shape)
        return list(whole[:, 0]), list(whole[:, 1]), [whole]
    keys, values, storages = [], [], []
    for _ in range(layers):
        if storage == "nhd":
            pair = [randn(*shape), randn(*shape)]
            storages += pair
        elif storage == "hnd":
            memory = [randn(blocks, heads, page_size, dim) for _ in range(2)]
            pair = [tensor.transpose(1, 2) for tensor in memory]
            storages += memory
        elif storage == "packed":
            whole = randn(blocks, page_size, heads, 2 * dim)
            pair = list(whole.split(dim, dim=-1))
            storages.append(whole)
        elif storage == "packed_hnd":  # what vLLM 0.32 hands each layer
            whole = randn(blocks, heads, page_size, 2 * dim)
            pair = [part.transpose(1, 2) for part in whole.split(dim, dim=-1)]
            storages.append(whole)
        else:  # rows that begin at every alignment an element can have, pages apart
            memory = [randn(blocks + 1, page_size + 1, heads, dim + 3) for _ in range(2)]
            pair = [tensor[1:, 1:, :, 2 : dim + 2] for tensor in memory]
            storages += memory
        keys.append(pair[0])
        values.append(pair[1])
    return keys, values, storages


def random_paged(
    random: Random,
    *,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    cache_dtypes: tuple[torch.dtype, ...] | None = None,
    longest: int = 60,
    layers: int = 1,
    device: torch.device | str = "cpu",
) -> Paged:
    """A batch of any shape; ``torch.manual_seed`` sets the numbers, ``random`` all the rest."""
    requests, kv_heads = random.randint(1, 4), random.randint(1, 3)
    heads, dim = kv_heads * random.randint(1, 3), 8 * random.randint(1, 4)
    page_size = random.choice((1, 1, 2, 3, 4, 5, 8, 16, 33, 64))
    num_rows = random.randint(1, 6)
    queries = [random.choice((0, 1, 2, num_rows, num_rows + 3)) for _ in range(requests)]
    seq_lens = [
        random.choice((0, count, count + random.randint(0, longest)))
        if count == 0 or random.random() < 0.3
        else count + random.randint(0, longest)
        for count in queries
    ]
    seq_lens = [max(length, count) for length, count in zip(seq_lens, queries, strict=True)]
    max_seq_len = max(seq_lens) + random.randint(0, 3)
    pages = math.ceil(max_seq_len / page_size) + random.randint(0, 1)
    blocks = requests * pages + random.randint(1, 4)
    dtype = random.choice(dtypes)
    cache_dtype = dtype if cache_dtypes is None else random.choice(cache_dtypes)
    caches = layer_caches(
        random.choice(STORAGES), (blocks, page_size, kv_heads, dim), cache_dtype, layers
    )
    table = torch.tensor(random.sample(range(blocks), requests * pages), dtype=torch.int32)
    starts = [sum(queries[:r]) for r in range(requests + 1)]
    # Queries that belong to no request, as a captured graph has them.
    query = torch.randn(starts[-1] + random.randint(0, 2), heads, dim).to(dtype)
    if random.random() < 0.5:
        query = query.transpose(0, 1).contiguous().transpose(0, 1)
    return Paged(
        query.to(device),
        *([tensor.to(device) for tensor in tensors] for tensors in caches[:2]),
        caches[2],
        table.view(requests, pages).to(device),
        lengths(*starts, device=device),
        lengths(*seq_lens, device=device),
        num_rows,
        max_seq_len,
    )


def random_selection(random: Random, batch: Paged) -> dict[str, Any]:
    """max_budget and the options of a selection from this batch."""
    keep_observation = random.random() < 0.5
    sink, recent = random.choice((0, 0, 1, 3)), random.choice((0, 0, 2))
    least = sink + recent + (batch.num_rows if keep_observation else 0)
    max_budget = max(1, least + random.randint(0, 30))
    requests = len(batch.seq_lens)
    budgets = [
        random.choice((0, -1, *range(max(1, least), max_budget + 1))) for _ in range(requests)
    ]
    return {
        "max_budget": max_budget,
        "budgets": None if random.random() < 0.3 else lengths(*budgets, device=batch.query.device),
        "pool_kernel": random.choice((1, 3, 7)),
        "num_sink": sink,
        "num_recent": recent,
        "keep_observation": keep_observation,
        "head_reduction": random.choice(("none", "none", "mean", "max")),
    }


def dense_request(batch: Paged, r: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Request r as query [1, Hq, L_r, D], key and value [1, Hkv, S, D]; None without rows."""
    request = paged.requests(batch.cu_seqlens_q, batch.seq_lens, batch.num_rows)[r]
    if request.rows == 0:
        return None
    rows = slice(request.first_row, request.first_row + request.rows)
    positions = torch.arange(request.prompt + request.rows, device=batch.query.device)
    where = paged.slots(batch.block_table[r], batch.keys[0].shape[1], positions)
    return (
        batch.query[rows].transpose(0, 1)[None],
        batch.keys[0][where].transpose(0, 1)[None],
        batch.values[0][where].transpose(0, 1)[None],
    )
