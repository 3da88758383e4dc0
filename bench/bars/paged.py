"""The bars of the paged ops on a CPU: `python -m bench.bars paged [--layers 32]`.

Compaction of every layer's cache in place, 32K to 2K entries, Llama-3.1-8B shapes, against torch
indexing that gathers to a copy and scatters it back; and scoring from pages against scoring from a
dense tensor. Ratios in the same run: interleaved rounds, medians. Takes 4.3 GB with all 32 layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import lookaheadkv_kernels as lkv
from bench import machine
from bench.bars import Bar, measure, options, status, times_better, times_faster
from bench.cases import LLAMA_8B
from bench.clock import interleaved, medians
from bench.memory import peak_extra_bytes

KEPT = 2048
PAGE_SIZE = 16


@dataclass(frozen=True)
class Layers:
    """Caches of all layers, K then V of each, and what is kept of them."""

    caches: list[Tensor]  # each [num_blocks, page_size, Hkv, D]
    indices: Tensor  # [num_layers, 1, Hkv, KEPT]
    kept_lens: Tensor  # [num_layers, 1]
    block_table: Tensor  # [1, max_blocks]

    def compact(self) -> None:
        lkv.compact_kv_cache(self.caches, self.indices, self.kept_lens, self.block_table)

    def copy_and_scatter(self) -> None:
        """The same with torch indexing, one layer at a time."""
        heads = torch.arange(LLAMA_8B.num_kv_heads)[:, None]
        kept = torch.arange(KEPT).expand(LLAMA_8B.num_kv_heads, KEPT)
        table = self.block_table[0].long()
        for layer, positions in enumerate(self.indices[:, 0].long()):
            source = (table[positions // PAGE_SIZE], positions % PAGE_SIZE, heads)
            target = (table[kept // PAGE_SIZE], kept % PAGE_SIZE, heads)
            for cache in self.caches[2 * layer : 2 * layer + 2]:
                cache[target] = cache[source]


def make_layers(num_layers: int) -> Layers:
    """Blocks in random order, random ascending positions for every head of every layer."""
    torch.manual_seed(0)
    case = LLAMA_8B
    blocks = case.num_prompt // PAGE_SIZE
    shape = (blocks, PAGE_SIZE, case.num_kv_heads, case.head_dim)
    ranks = torch.rand(num_layers, 1, case.num_kv_heads, case.num_prompt)
    indices = ranks.topk(KEPT).indices.sort().values.to(torch.int32)
    return Layers(
        [torch.full(shape, float(i), dtype=case.dtype) for i in range(2 * num_layers)],
        indices,
        torch.full((num_layers, 1), KEPT, dtype=torch.int32),
        torch.randperm(blocks)[None].to(torch.int32),
    )


def compaction_bars(num_layers: int, rounds: int) -> Iterator[Bar]:
    """Time against the peer's, and the memory taken."""
    layers = make_layers(num_layers)
    times = medians(interleaved({"ours": layers.compact, "torch": layers.copy_and_scatter}, rounds))
    what = f"compact_kv_cache, {num_layers} layers / gather to a copy and scatter"
    yield times_faster(what, times["ours"], times["torch"], 3.0)
    extra = peak_extra_bytes(layers.compact)
    ours, ratio = f"{extra / 2**10:.0f} KiB", 2**20 / max(extra, 1)
    yield times_better("1 MiB / extra memory of compact_kv_cache", ours, "1024 KiB", ratio, 1.0)


def scoring_bars(rounds: int) -> Iterator[Bar]:
    """Scores of one layer from pages against the dense op's, for bf16 and for int8 keys."""
    case = LLAMA_8B
    query, key, _ = case.inputs()
    length = case.num_keys
    pages = key[0].transpose(0, 1).reshape(-1, PAGE_SIZE, case.num_kv_heads, case.head_dim)
    order = torch.randperm(len(pages))
    table = torch.empty(1, len(pages), dtype=torch.int32)
    table[0, order] = torch.arange(len(pages), dtype=torch.int32)
    cache = pages[order].contiguous()
    packed = query[0].transpose(0, 1).contiguous()
    starts = torch.tensor([0, case.num_rows], dtype=torch.int32)
    lens = torch.tensor([length], dtype=torch.int32)
    small = (cache.float() * 32).round().clamp(-128, 127).to(torch.int8)
    scale = torch.tensor(1 / 32)
    batch = (table, starts, lens, case.num_rows, length)
    times = medians(
        interleaved(
            {
                "dense": lambda: lkv.column_scores(query, key),
                "paged": lambda: lkv.paged_column_scores(packed, cache, *batch),
                "int8": lambda: lkv.paged_column_scores(packed, small, *batch, k_scale=scale),
            },
            rounds,
        )
    )
    for name, call, wanted in (
        ("paged_column_scores, pages of 16", "paged", 0.8),
        ("paged_column_scores, int8 keys", "int8", 0.5),
    ):
        what = f"{name} / column_scores of a dense tensor"
        yield times_faster(what, times[call], times["dense"], wanted)


def main(arguments: list[str]) -> int:
    """Measure and print; whether a bar is missed."""
    parser = options("paged", __doc__)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    parser.add_argument("--layers", type=int, default=32, help="layers compacted (default: 32)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    print(f"{machine.device_name('cpu')}, N = {LLAMA_8B.num_prompt}", flush=True)
    steps = [
        ("compaction", partial(compaction_bars, chosen.layers, chosen.rounds)),
        ("scoring", partial(scoring_bars, chosen.rounds)),
    ]
    record = {
        "kind": "paged bars",
        **machine.facts("cpu", machine.command("bench.bars")),
        "num_prompt": LLAMA_8B.num_prompt,
    }
    return status(*measure(steps, record, chosen.json))
