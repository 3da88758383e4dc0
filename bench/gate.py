"""Has a call become slower? The exit status of `python -m bench.gate` says so.

Every room is timed in turn with a peer that does the same work in plain PyTorch. On a machine whose
figures are stored (`--record`; by device, torch and CUDA version, bench/baselines/) the ratio of
the two may be at most 1.2 times the stored one; on a GPU, which nobody shares, the same holds for
our time. Everywhere else each room must beat its peer by a modest factor. What looks slow is
measured again before it counts: other programs disturb a round or an attempt, not all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import lookaheadkv_kernels as lkv
from bench import machine
from bench.cases import Case
from bench.clock import Call, Clock, clock_of, interleaved
from bench.peers.eager import eager_score_and_evict, eager_scores
from bench.peers.pool_topk import pool_topk_sorted, torch_gather
from bench.peers.sdpa import sdpa_and_eager_scores
from bench.ratios import Batch, Verdict, judge
from bench.work import usual_dtype

BASELINES = Path(__file__).resolve().parent / "baselines"
LIMIT = 1.2
ROUNDS = 15
BUDGET = 128


@dataclass(frozen=True)
class Gated:
    """A call, its peer, and the most that it may take of the peer's time on any machine."""

    name: str
    ours: Call
    peer: Call
    most: float


@dataclass(frozen=True)
class Stored:
    """What one call took on this very machine."""

    ratio: float
    seconds: float


def in_turn(ours: Call, peer: Call, rounds: int, clock: Clock) -> Batch:
    """Some rounds of both, when called."""

    def batch() -> tuple[list[float], list[float]]:
        taken = interleaved({"ours": ours, "peer": peer}, rounds, clock=clock)
        return taken["ours"], taken["peer"]

    return batch


def gated_calls(device: str, num_prompt: int) -> list[Gated]:
    """Every room and the whole, at Llama-3.1-8B's shapes."""
    case = Case(num_prompt=num_prompt, dtype=usual_dtype(device))
    query, key, value = case.inputs(device=device)
    lse = lkv.lookahead_attention(query, key, value).lse
    scores = torch.rand(key.shape[0], key.shape[1], num_prompt, device=device)
    indices = lkv.select(scores, BUDGET)
    return [
        Gated(
            "attention / sdpa + eager scores",
            partial(lkv.lookahead_attention, query, key, value),
            partial(sdpa_and_eager_scores, query, key, value),
            1 / 1.5,
        ),
        Gated(
            "scores / eager",
            partial(lkv.column_scores, query, key, lse),
            partial(eager_scores, query, key),
            1 / 2.5,
        ),
        Gated(
            "select / max_pool1d + topk + sort",
            partial(lkv.select, scores, BUDGET),
            partial(pool_topk_sorted, scores, BUDGET),
            1 / 1.5,
        ),
        Gated(
            "gather / torch.gather",
            partial(lkv.gather_kv, key, value, indices),
            partial(torch_gather, key, value, indices.long()),
            1.25,
        ),
        Gated(
            "score_and_evict / eager",
            partial(lkv.score_and_evict, query, key, value, BUDGET),
            partial(eager_score_and_evict, query, key, value, BUDGET),
            1 / 2.5,
        ),
    ]


def baseline_file(device: str, num_prompt: int) -> Path:
    """Where this machine's figures are, or would be."""
    name = " ".join(machine.key(device).values())
    return BASELINES / f"{machine.slug(f'{name} {lkv.backend_for(device)} n{num_prompt}')}.json"


def load(path: Path, device: str) -> dict[str, Stored]:
    """Stored figures by name; none if they are not this machine's."""
    if not path.is_file():
        return {}
    data = json.loads(path.read_text())
    if any(data[name] != value for name, value in machine.key(device).items()):
        return {}
    return {name: Stored(**figures) for name, figures in data["calls"].items()}


def check(
    calls: Sequence[Gated], stored: dict[str, Stored], device: str, rounds: int = ROUNDS
) -> dict[str, Verdict]:
    """A verdict on every call."""
    clock = clock_of(device)
    verdicts = {}
    for call in calls:
        most, seconds = call.most, float("inf")
        if call.name in stored:
            most = LIMIT * stored[call.name].ratio
            if device == "cuda":
                seconds = LIMIT * stored[call.name].seconds
        batch = in_turn(clock.prepare(call.ours), clock.prepare(call.peer), rounds, clock)
        verdicts[call.name] = judge(batch, most, most_seconds=seconds)
    return verdicts


def write(path: Path, verdicts: dict[str, Verdict], facts: dict[str, Any]) -> None:
    """Store what was measured as this machine's figures."""
    calls = {
        name: {"ratio": verdict.ratio.value, "seconds": verdict.seconds}
        for name, verdict in verdicts.items()
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**facts, "calls": calls}, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and say whether anything is too slow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompt", type=int, default=8192, help="prompt keys (default: 8192)")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--record", action="store_true", help="store this machine's figures")
    options = parser.parse_args(arguments)
    path = baseline_file(options.device, options.prompt)
    stored = {} if options.record else load(path, options.device)
    calls = gated_calls(options.device, options.prompt)
    verdicts = check(calls, stored, options.device, options.rounds)
    print(f"{machine.device_name(options.device)}: {'stored' if stored else 'no stored'} figures")
    for name, verdict in verdicts.items():
        print(
            f"{name:36} {verdict.ratio!s:22} {1e6 * verdict.seconds:10.1f} us  "
            f"attempts {verdict.attempts}  {'TOO SLOW' if verdict.slow else 'ok'}"
        )
    slow = any(verdict.slow for verdict in verdicts.values())
    if options.record and not slow:
        write(path, verdicts, machine.facts(options.device, machine.command("bench.gate")))
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
