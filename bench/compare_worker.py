"""Times calls of whatever `lookaheadkv_kernels` is first on the path, one at a time, on request.

`bench/compare.py` runs one of these for each revision, and writes a call's name to its input
whenever it is its turn; the answer is the seconds that the call took. The clock is the file beside
this one, and not that of the revision, whose benchmarks may be older.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from clock import WallClock, seconds_of  # type: ignore[import-not-found]  # beside this script

import lookaheadkv_kernels as lkv


def make_calls(settings: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """Every room and the whole, on random inputs."""
    generator = torch.Generator().manual_seed(settings["seed"])
    dtype, device = getattr(torch, settings["dtype"]), settings["device"]
    rows, prompt, dim = settings["num_rows"], settings["num_prompt"], settings["head_dim"]

    def normal(heads: int, length: int) -> torch.Tensor:
        drawn = torch.randn(1, heads, length, dim, generator=generator)
        return drawn.to(device, dtype)

    query = normal(settings["num_heads"], rows)
    key, value = (normal(settings["num_kv_heads"], prompt + rows) for _ in range(2))
    budget = settings["budget"]
    attention = lkv.lookahead_attention(query, key, value)
    lse, scores = attention[1:]
    indices = lkv.select(scores, budget)
    return {
        "attention": lambda: lkv.lookahead_attention(query, key, value),
        "scores": lambda: lkv.column_scores(query, key, lse),
        "select": lambda: lkv.select(scores, budget),
        "gather": lambda: lkv.gather_kv(key, value, indices),
        "score_and_evict": lambda: lkv.score_and_evict(query, key, value, budget),
    }


def main() -> None:
    """Settings on the command line, names on the input, seconds on the output."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    calls = make_calls(settings)
    clock = WallClock(settings["device"])
    for call in calls.values():
        call()
    print("ready", lkv.__file__, flush=True)
    for line in sys.stdin:
        call = calls[line.strip()]

        def repeated(call: Callable[[], object] = call) -> None:
            for _ in range(settings["repeats"]):
                call()

        print(seconds_of(clock, repeated) / settings["repeats"], flush=True)


if __name__ == "__main__":
    main()
