"""The CPU speed and memory bars: `python -m bench.bars [--json FILE]`.

Every figure is a ratio to a peer in the same run: interleaved rounds, medians, random data. Where
bfloat16 has no instructions, float32 alone is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

import lookaheadkv_kernels as lkv
from bench import machine
from bench.bars import Bar, Step, measure, options, status, times_better, times_faster
from bench.cases import LLAMA_8B, Case
from bench.clock import interleaved, medians
from bench.memory import peak_extra_bytes
from bench.peers.eager import eager_score_and_evict
from bench.peers.pool_topk import pool_topk_sorted
from bench.text import mebibytes
from bench.work import usual_dtype

BUDGET = 128


def evict_bars(case: Case, rounds: int, wanted: float, wanted_lse: float | None) -> Iterator[Bar]:
    """score_and_evict against the paper-style eager code and against the bare q k^T."""
    query, key, value = case.inputs()
    lse = lkv.lookahead_attention(query, key, value).lse
    folded = query.view(1, case.num_kv_heads, -1, case.head_dim)
    transposed = key.transpose(-1, -2)
    times = medians(
        interleaved(
            {
                "ours": lambda: lkv.score_and_evict(query, key, value, BUDGET),
                "ours, lse": lambda: lkv.score_and_evict(query, key, value, BUDGET, lse=lse),
                "eager": lambda: eager_score_and_evict(query, key, value, BUDGET),
                "gemm": lambda: torch.matmul(folded, transposed),
            },
            rounds,
        )
    )
    name, ours, eager = f"{case.dtype_name}: score_and_evict", times["ours"], times["eager"]
    yield times_faster(f"{name} / eager", ours, eager, wanted)
    if wanted_lse is not None:
        yield times_faster(f"{name} with lse / eager", times["ours, lse"], eager, wanted_lse)
    yield times_faster(f"{name} / torch.matmul of q k^T alone", ours, times["gemm"], 0.5)


def memory_bar(case: Case) -> Iterator[Bar]:
    """Peak extra memory of score_and_evict against the eager code's."""
    query, key, value = case.inputs()
    lkv.score_and_evict(query, key, value, BUDGET)  # allocates what is kept for later calls
    ours = peak_extra_bytes(lambda: lkv.score_and_evict(query, key, value, BUDGET))
    eager = peak_extra_bytes(lambda: eager_score_and_evict(query, key, value, BUDGET))
    what, ratio = f"{case.dtype_name}: peak extra memory / eager", eager / max(ours, 1)
    yield times_better(what, mebibytes(ours), mebibytes(eager), ratio, 16.0)


def select_bar(rounds: int) -> Iterator[Bar]:
    """select on [8, 32768], budget 128, against max_pool1d + topk + sort."""
    scores = torch.rand(1, 8, 32_768, generator=torch.Generator().manual_seed(0))
    times = medians(
        interleaved(
            {
                "ours": lambda: lkv.select(scores, BUDGET),
                "torch": lambda: pool_topk_sorted(scores, BUDGET),
            },
            20 * rounds,
            5,
        )
    )
    what = "select [8, 32768] / max_pool1d + topk + sort"
    yield times_faster(what, times["ours"], times["torch"], 3.0)


def steps(rounds: int) -> Iterator[Step]:
    """All of the group's measurements."""
    single = replace(LLAMA_8B, dtype=torch.float32)
    usual = replace(LLAMA_8B, dtype=usual_dtype())
    yield "memory", partial(memory_bar, usual)
    if usual != single:
        yield "eviction, bfloat16", partial(evict_bars, usual, rounds, 8.0, 10.0)
    yield "eviction, float32", partial(evict_bars, single, rounds, 4.0, None)
    yield "selection", partial(select_bar, rounds)


def main(arguments: list[str]) -> int:
    """Measure and print; whether a bar is missed."""
    parser = options("cpu", __doc__)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default: 9)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    print(f"{machine.device_name('cpu')}, N = {LLAMA_8B.num_prompt}", flush=True)
    if usual_dtype() != torch.bfloat16:
        print("torch multiplies bfloat16 without instructions for it here: float32 alone")
    record = {
        "kind": "bars",
        **machine.facts("cpu", machine.command("bench.bars")),
        "num_prompt": LLAMA_8B.num_prompt,
    }
    return status(*measure(steps(chosen.rounds), record, chosen.json))
