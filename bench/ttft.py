"""Time to the first token, end to end: `python -m bench.ttft --model llama-3.1-8b --device cuda`.

Known models get random weights (a prompt's time does not depend on them); the packaged one is the
real one. The forward alone, through transformers' cache and through ours, LookaheadKV (appended and
extend), SnapKV, LAQ, SpecKV, and the paper-style eager eviction behind the forward. Methods take
turns; medians; overhead against the forward of the same turns. Then decoding speed behind the
prompt, uncut and evicted, step by step in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import machine
from bench.clock import WallClock, interleaved, medians, seconds_of
from bench.memory import keep_freed_memory, peak_extra_bytes
from bench.ratios import median_ratio
from bench.report import length_section
from bench.ttft_methods import QUICK, Models, decoders, methods
from bench.work import usual_dtype_name
from lookaheadkv_kernels.integrations.transformers.attention import attach

# What the paper measured for LLaMA-3.1-8B on an H100 (table 5): TTFT and overhead in ms.
PAPER_METHODS = ("forward", "lookaheadkv", "snapkv", "speckv", "laq")
PAPER = {
    4096: ((130, None), (141, 11.38), (143, 13.14), (223, 92.42), (637, 506.58)),
    8192: ((291, None), (302, 10.88), (311, 20.17), (411, 120.51), (800, 509.38)),
    16384: ((658, None), (677, 18.50), (695, 37.12), (866, 207.31), (1182, 523.54)),
    32768: ((1760, None), (1798, 38.04), (1838, 77.67), (2263, 502.87), (2314, 553.68)),
}
PAPER_MODEL = "llama-3.1-8b"


def overhead(taken: dict[str, list[float]], name: str, base: str) -> dict[str, float]:
    """How much longer ``name`` takes than ``base``, over the rounds that both ran in."""
    pairs = list(zip(taken[name], taken[base], strict=False))  # the slow ones stop earlier
    ratio = median_ratio([own for own, _ in pairs], [alone for _, alone in pairs])
    return {
        "ms": statistics.median(1e3 * (own - alone) for own, alone in pairs),
        "percent": 100 * (ratio.value - 1),
        "percent_low": 100 * (ratio.low - 1),
        "percent_high": 100 * (ratio.high - 1),
    }


@torch.no_grad()
def measure_prefill(
    models: Models, num_tokens: int, budget: int, rounds: int, slow_rounds: int
) -> dict[str, dict[str, Any]]:
    """Median seconds, overheads and peak extra memory of every method.

    Every method runs in the first ``slow_rounds`` rounds; those whose overhead is a small
    difference of large times go on to ``rounds``.
    """
    device = models.target.device
    clock = WallClock(device)
    found = methods(models, budget)
    taken: dict[str, list[float]] = {name: [] for name in found}

    def run(name: str) -> Callable[[], object]:
        ids = models.prompt(num_tokens)
        return lambda: found[name](ids)

    memory = {name: peak_extra_bytes(run(name), device) for name in found}  # warms up, too
    for round_ in range(rounds):
        for name in found:
            if round_ < slow_rounds or name in QUICK:
                taken[name].append(seconds_of(clock, run(name)))
    return {
        name: {
            "seconds": statistics.median(taken[name]),
            "rounds": len(taken[name]),
            "overhead": overhead(taken, name, "forward"),
            "overhead_over_full_cache": overhead(taken, name, "full cache"),
            "peak_extra_bytes": memory[name],
        }
        for name in found
    }


@torch.no_grad()
def measure_decoding(
    models: Models, num_tokens: int, budget: int, steps: int
) -> dict[str, dict[str, float]]:
    """Median seconds of a decoding step behind a prompt, and tokens per second."""
    calls = decoders(models, budget, models.prompt(num_tokens))
    taken = medians(interleaved(calls, steps, warmup=2, clock=WallClock(models.target.device)))
    return {
        name: {"seconds": seconds, "tokens_per_second": 1 / seconds}
        for name, seconds in taken.items()
    }


def main() -> None:
    """Measure, and print a table for every length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", help="default: bfloat16, or float32 on a CPU without instructions for it"
    )
    parser.add_argument("--length", type=int, action="append", help="tokens; repeatable")
    parser.add_argument("--budget", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7, help="of the quick methods")
    parser.add_argument("--slow-rounds", type=int, default=3, help="of those with drafts")
    parser.add_argument("--decode-steps", type=int, default=32)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.device == "cpu":
        keep_freed_memory()
    dtype = options.dtype or usual_dtype_name(options.device)
    models = Models.make(options.model, getattr(torch, dtype), options.device)
    attach(models.target)
    on_gpu = models.target.device.type == "cuda"
    print(
        f"{options.model}, {dtype}, budget {options.budget}, "
        f"{machine.device_name(models.target.device)}"
    )
    results = {}
    for length in options.length or ([4096, 8192, 16384, 32768] if on_gpu else [1024, 4096]):
        rows = measure_prefill(models, length, options.budget, options.rounds, options.slow_rounds)
        speed = measure_decoding(models, length, options.budget, options.decode_steps)
        known = options.model == PAPER_MODEL and length in PAPER
        paper = dict(zip(PAPER_METHODS, PAPER[length], strict=True)) if known else {}
        results[length] = {"methods": rows, "decode": speed, "paper": paper}
        print("\n" + "\n".join(length_section(length, results[length])), flush=True)
    if options.json:
        record = {
            "kind": "ttft",
            **machine.facts(models.target.device, machine.command("bench.ttft")),
            "model": options.model,
            "dtype": dtype,
            "budget": options.budget,
            "results": results,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
