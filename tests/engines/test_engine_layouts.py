"""Caches laid out in memory exactly as engines do it, scored and compacted where they lie.

Each engine here writes and reads its memory entry by entry, in its own terms; the views that the
ops get are those of its page in docs/engines/.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import lookaheadkv_kernels as lkv
from lookaheadkv_kernels.paged import compact_kv_cache, paged_score_and_select

HEADS, KV_HEADS, DIM, ROWS, LAYERS = 6, 2, 32, 4, 2
LENGTHS = (61, 9, 40)
BUDGET = 12
WIDTH = 48  # slots that a request may have beyond what it fills, for tables


@dataclass
class Views:
    """What the ops take: of each layer [num_blocks, page_size, Hkv, D] of K and of V."""

    key: list[Tensor]
    value: list[Tensor]
    block_table: Tensor


class Engine:
    """One engine's memory: where an entry lies, and the views for the ops."""

    head_reduction = "none"
    page_size = 1
    memory: list[Tensor]
    table: Tensor  # [R, max_blocks] int32, a random permutation of blocks

    def make_table(self, generator: torch.Generator, spare: int = 1) -> int:
        """Blocks of all requests in random order; block 0 belongs to nobody. Returns how many."""
        each = math.ceil(max(LENGTHS) / self.page_size) + spare
        count = len(LENGTHS) * each + 1
        order = torch.randperm(count - 1, generator=generator) + 1
        self.table = order.view(len(LENGTHS), each).to(torch.int32)
        return count

    def place(self, request: int, position: int) -> tuple[int, int]:
        """Block and slot of a position."""
        return (
            int(self.table[request, position // self.page_size]),
            position % self.page_size,
        )

    def entry(self, layer: int, request: int, position: int) -> tuple[Any, Any]:
        """Views [Hkv, D] of an entry's K and V in the engine's memory."""
        raise NotImplementedError

    def views(self) -> Views:
        """As docs/engines/ has them."""
        raise NotImplementedError


class VllmHeads(Engine):
    """vLLM 0.32, LBHNC: [num_blocks, Hkv, block_size, 2 * D] a layer, K and V side by side."""

    page_size = 16

    def __init__(self, generator: torch.Generator) -> None:
        blocks = self.make_table(generator)
        shape = (blocks, KV_HEADS, self.page_size, 2 * DIM)
        self.memory = [torch.randn(shape, generator=generator) for _ in range(LAYERS)]

    def entry(self, layer: int, request: int, position: int) -> tuple[Any, Any]:
        block, slot = self.place(request, position)
        both = self.memory[layer][block, :, slot]
        return both[:, :DIM], both[:, DIM:]

    def views(self) -> Views:
        pairs = [cache.transpose(1, 2).split(DIM, dim=-1) for cache in self.memory]
        return Views([k for k, _ in pairs], [v for _, v in pairs], self.table)


class VllmTokens(VllmHeads):
    """vLLM 0.32, BLNHC: all layers of a block together, tokens before heads in memory."""

    def __init__(self, generator: torch.Generator) -> None:
        blocks = self.make_table(generator)
        shape = (blocks, LAYERS, self.page_size, KV_HEADS, 2 * DIM)
        whole = torch.randn(shape, generator=generator)
        self.memory = [whole[:, layer].transpose(1, 2) for layer in range(LAYERS)]


class Sglang(Engine):
    """SGLang: k_buffer and v_buffer [size + page_size, Hkv, D]; req_to_token says each token's."""

    def __init__(self, generator: torch.Generator, page_size: int = 1) -> None:
        self.page_size = page_size
        size = self.make_table(generator) * page_size
        shape = (LAYERS, size, KV_HEADS, DIM)
        self.k_buffer = list(torch.randn(shape, generator=generator))
        self.v_buffer = list(torch.randn(shape, generator=generator))
        self.memory = [*self.k_buffer, *self.v_buffer]
        slots = self.table[:, :, None] * page_size + torch.arange(page_size, dtype=torch.int32)
        self.req_to_token = torch.zeros(9, 128, dtype=torch.int32)
        self.req_pool_indices = torch.tensor([4, 1, 7])
        self.req_to_token[self.req_pool_indices, : slots[0].numel()] = slots.flatten(1)

    def entry(self, layer: int, request: int, position: int) -> tuple[Any, Any]:
        token = self.req_to_token[self.req_pool_indices[request], position]
        return self.k_buffer[layer][token], self.v_buffer[layer][token]

    def views(self) -> Views:
        size = self.page_size
        table = self.req_to_token[self.req_pool_indices, ::size] // size
        pages = (-1, size, KV_HEADS, DIM)
        return Views(
            [k.view(pages) for k in self.k_buffer], [v.view(pages) for v in self.v_buffer], table
        )


class SglangPages(Sglang):
    """The same with ``--page-size 16``."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__(generator, 16)


class SglangShared(Sglang):
    """The same, moved by whole tokens as ``move_kv_cache`` does."""

    head_reduction = "mean"


class TensorrtLlm(Engine):
    """TensorRT-LLM, NHD: one pool [num_blocks, num_layers, 2, tokens_per_block, Hkv, D]."""

    page_size = 8
    heads_first = False

    def __init__(self, generator: torch.Generator) -> None:
        blocks = self.make_table(generator)
        inner = (self.page_size, KV_HEADS) if not self.heads_first else (KV_HEADS, self.page_size)
        self.pool = torch.randn(blocks, LAYERS, 2, *inner, DIM, generator=generator)
        self.memory = [self.pool]

    def entry(self, layer: int, request: int, position: int) -> tuple[Any, Any]:
        block, slot = self.place(request, position)
        both = self.pool[block, layer]
        both = both[:, :, slot] if self.heads_first else both[:, slot]
        return both[0], both[1]

    def views(self) -> Views:
        buffers = [self.pool[:, layer] for layer in range(LAYERS)]
        if self.heads_first:
            buffers = [buffer.transpose(2, 3) for buffer in buffers]
        return Views([b[:, 0] for b in buffers], [b[:, 1] for b in buffers], self.table)


class TensorrtLlmHeads(TensorrtLlm):
    """The same, HND."""

    heads_first = True


class LlamaCpp(Engine):
    """llama.cpp with flash attention: k and v [kv_size, Hkv * D] f16, a cell for each token."""

    head_reduction = "max"
    dtype = torch.float16

    def __init__(self, generator: torch.Generator) -> None:
        self.kv_size = self.make_table(generator)
        shape = (LAYERS, self.kv_size, KV_HEADS * DIM)
        self.k, self.v = (list(torch.randn(shape, generator=generator).half()) for _ in range(2))
        self.memory = [*self.k, *self.v]

    def entry(self, layer: int, request: int, position: int) -> tuple[Any, Any]:
        cell, _ = self.place(request, position)
        return (
            self.k[layer][cell].view(KV_HEADS, DIM),
            self.v[layer][cell].view(KV_HEADS, DIM),
        )

    def views(self) -> Views:
        cells = (self.kv_size, 1, KV_HEADS, DIM)
        return Views([k.view(cells) for k in self.k], [v.view(cells) for v in self.v], self.table)


ENGINES = [
    VllmHeads,
    VllmTokens,
    Sglang,
    SglangPages,
    SglangShared,
    TensorrtLlm,
    TensorrtLlmHeads,
    LlamaCpp,
]


def whole(engine: Engine, layer: int, request: int, length: int) -> tuple[Tensor, Tensor]:
    """K and V [1, Hkv, length, D] of a request, read entry by entry."""
    pairs = [engine.entry(layer, request, position) for position in range(length)]
    key, value = (torch.stack([pair[i] for pair in pairs], dim=1)[None] for i in range(2))
    return key, value


@pytest.mark.parametrize("engine_class", ENGINES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("tail", [False, True], ids=["head", "tail"])
def test_scored_and_compacted_in_the_engine_s_own_memory(
    engine_class: type[Any], tail: bool
) -> None:
    generator = torch.Generator().manual_seed(11)
    engine = engine_class(generator)
    views = engine.views()
    dtype = views.key[0].dtype
    assert views.key[0].untyped_storage().data_ptr() in {
        memory.untyped_storage().data_ptr() for memory in engine.memory
    }, "a view, not a copy"
    seq_lens = torch.tensor(LENGTHS, dtype=torch.int32)
    starts = torch.arange(len(LENGTHS) + 1, dtype=torch.int32) * ROWS
    query = torch.randn(LAYERS, len(LENGTHS) * ROWS, HEADS, DIM, generator=generator).to(dtype)

    before = [memory.clone() for memory in engine.memory]
    dense = {}
    chosen = []
    for layer in range(LAYERS):
        chosen.append(
            paged_score_and_select(
                query[layer],
                views.key[layer],
                views.block_table,
                starts,
                seq_lens,
                ROWS,
                max(LENGTHS),
                BUDGET,
                keep_observation=True,
                head_reduction=engine.head_reduction,
            )
        )
        for request, length in enumerate(LENGTHS):
            key, value = whole(engine, layer, request, length)
            dense[layer, request] = (key, value)
            rows = query[layer, request * ROWS : (request + 1) * ROWS].transpose(0, 1)[None]
            scores = lkv.column_scores(rows, key)
            torch.testing.assert_close(
                chosen[layer].scores[request, :, : length - ROWS],
                scores[0] if length > BUDGET else torch.zeros_like(scores[0]),
            )
            if length > BUDGET:
                own = scores
                if engine.head_reduction == "mean":
                    own = scores.mean(dim=1, keepdim=True)
                elif engine.head_reduction == "max":
                    own = scores.amax(dim=1, keepdim=True)
                best = lkv.select(own, BUDGET - ROWS)[0].tolist()
                window = list(range(length - ROWS, length))
                want = [[*head, *window] for head in best]
                assert chosen[layer].indices[request].tolist() == want

    indices = torch.stack([choice.indices for choice in chosen])
    kept_lens = torch.stack([choice.kept_lens for choice in chosen])
    caches = [cache for pair in zip(views.key, views.value, strict=True) for cache in pair]
    start = (seq_lens - kept_lens).to(torch.int32) if tail else None
    compact_kv_cache(caches, indices, kept_lens, views.block_table, dst_start=start)

    for (layer, request), (key, value) in dense.items():
        length = LENGTHS[request]
        keep = min(length, BUDGET)
        first = length - keep if tail else 0
        want = (key.clone(), value.clone())
        kept = indices[layer, request].long().expand(KV_HEADS, -1)[:, :keep]
        for old, new in zip((key, value), want, strict=True):
            new[:, :, first : first + keep] = old.gather(
                2, kept[None, :, :, None].expand(1, KV_HEADS, keep, DIM)
            )
        got = whole(engine, layer, request, length)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
        for position in range(first, first + keep):  # put it back: the rest must be as it was
            for now, old in zip(engine.entry(layer, request, position), (key, value), strict=True):
                now.copy_(old[0, :, position])
    for memory, old in zip(engine.memory, before, strict=True):
        assert torch.equal(memory, old)


def test_transposed_keys_are_moved_element_by_element() -> None:
    """Keys that lie as [D, tokens] (vLLM's CPU, llama.cpp's V without flash attention).

    Their last dimension is not contiguous, so they cannot be scored where they lie; but each of the
    Hkv * D rows is a "head" whose entries are one element wide, and moves in place.
    """
    generator = torch.Generator().manual_seed(3)
    kv_size, length, keep = 50, 40, 11
    v = torch.randn(KV_HEADS * DIM, kv_size, generator=generator)  # [Hkv * D, kv_size]
    cells = torch.randperm(kv_size, generator=generator)[:length].to(torch.int32)
    kept = torch.stack(
        [torch.randperm(length, generator=generator)[:keep].sort().values for _ in range(KV_HEADS)]
    ).to(torch.int32)
    before = v.clone()
    compact_kv_cache(
        [v.t()[:, None, :, None]],
        kept.repeat_interleave(DIM, dim=0)[None, None],
        torch.tensor([[keep]], dtype=torch.int32),
        cells[None],
    )
    want = before.view(KV_HEADS, DIM, kv_size).clone()
    for head in range(KV_HEADS):
        sources = cells.long()[kept[head].long()]
        want[head][:, cells[:keep].long()] = before.view(KV_HEADS, DIM, kv_size)[head][:, sources]
    assert torch.equal(v.view(KV_HEADS, DIM, kv_size), want)


def test_quantised_cells_move_as_bytes() -> None:
    """llama.cpp's q8_0: 32 numbers are 34 bytes, an fp16 scale and 32 of int8."""
    generator = torch.Generator().manual_seed(4)
    row_bytes = KV_HEADS * DIM // 32 * 34
    kv_size, length, keep = 30, 24, 7
    k = torch.randint(0, 256, (kv_size, row_bytes), generator=generator, dtype=torch.uint8)
    cells = torch.randperm(kv_size, generator=generator)[:length].to(torch.int32)
    kept = torch.randperm(length, generator=generator)[:keep].sort().values.to(torch.int32)
    want = k.clone()
    want[cells[:keep].long()] = k[cells.long()[kept.long()]]
    compact_kv_cache(
        [k.view(kv_size, 1, KV_HEADS, -1)],
        kept[None, None, None],
        torch.tensor([[keep]], dtype=torch.int32),
        cells[None],
    )
    assert torch.equal(k, want)
