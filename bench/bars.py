"""The CPU speed and memory bars, measured and judged: `python -m bench.bars [--json FILE]`.

Every figure is a ratio to a peer in the same run: interleaved rounds, medians, random data.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import lookaheadkv_kernels as lkv
from bench import machine
from bench.cases import LLAMA_8B, Case
from bench.measure import interleaved, medians, peak_extra_bytes
from bench.peers.eager import eager_score_and_evict
from bench.peers.pool_topk import pool_topk_sorted
from lookaheadkv_kernels.info import cpu_model

BUDGET = 128


@dataclass(frozen=True)
class Bar:
    """One line of the table; `value` is how many times better than the peer we are."""

    what: str
    value: float
    wanted: float
    ours: str
    peer: str

    @property
    def met(self) -> bool:
        return self.value >= self.wanted


def evict_bars(case: Case, rounds: int, wanted: float, wanted_lse: float | None) -> list[Bar]:
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
    name = str(case.dtype).removeprefix("torch.")

    def bar(what: str, ours: str, peer: str, wanted: float) -> Bar:
        return Bar(
            f"{name}: {what}",
            times[peer] / times[ours],
            wanted,
            f"{times[ours] * 1e3:.1f} ms",
            f"{times[peer] * 1e3:.1f} ms",
        )

    bars = [bar("score_and_evict / eager", "ours", "eager", wanted)]
    if wanted_lse is not None:
        bars.append(bar("score_and_evict with lse / eager", "ours, lse", "eager", wanted_lse))
    bars.append(bar("score_and_evict / torch.matmul of q k^T alone", "ours", "gemm", 0.5))
    return bars


def memory_bar(case: Case) -> Bar:
    """Peak extra memory of score_and_evict against the eager code's."""
    query, key, value = case.inputs()
    lkv.score_and_evict(query, key, value, BUDGET)  # what is allocated once and kept
    ours = peak_extra_bytes(lambda: lkv.score_and_evict(query, key, value, BUDGET))
    eager = peak_extra_bytes(lambda: eager_score_and_evict(query, key, value, BUDGET))
    name = str(case.dtype).removeprefix("torch.")
    return Bar(
        f"{name}: peak extra memory / eager",
        eager / max(ours, 1),
        16.0,
        f"{ours / 2**20:.1f} MiB",
        f"{eager / 2**20:.1f} MiB",
    )


def select_bar(rounds: int) -> Bar:
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
    return Bar(
        "select [8, 32768] / max_pool1d + topk + sort",
        times["torch"] / times["ours"],
        3.0,
        f"{times['ours'] * 1e6:.0f} us",
        f"{times['torch'] * 1e6:.0f} us",
    )


def measure_all(rounds: int) -> list[Bar]:
    steps: list[Callable[[], list[Bar]]] = [
        lambda: [memory_bar(LLAMA_8B)],
        lambda: evict_bars(LLAMA_8B, rounds, 8.0, 10.0),
        lambda: evict_bars(replace(LLAMA_8B, dtype=torch.float32), rounds, 4.0, None),
        lambda: [select_bar(rounds)],
    ]
    return [bar for step in steps for bar in step()]


def print_table(bars: list[Bar]) -> None:
    """What was measured, and whether it is enough."""
    threads = torch.get_num_threads()
    table = Table(title=f"{cpu_model()}, {threads} threads, N = {LLAMA_8B.num_prompt}")
    for heading in ("what", "ratio", "bar", "ours", "peer", ""):
        table.add_column(heading)
    for bar in bars:
        verdict = "met" if bar.met else "MISSED"
        table.add_row(
            bar.what, f"{bar.value:.2f}x", f"{bar.wanted:g}x", bar.ours, bar.peer, verdict
        )
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default: 9)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    bars = measure_all(arguments.rounds)
    print_table(bars)
    if arguments.json:
        facts = {
            "kind": "bars",
            **machine.facts("cpu", machine.command("bench.bars")),
            "num_prompt": LLAMA_8B.num_prompt,
            "bars": [{**asdict(bar), "met": bar.met} for bar in bars],
        }
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n")
    return 0 if all(bar.met for bar in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
