"""Other tiles than splits.py chooses, timed on the GPU: `python -m bench.triton_tune`.

For whoever changes lookaheadkv_kernels/triton/splits.py: every line is one choice of keys per
tile, warps, stages and splits, at Llama-3.1-8B's shapes, with cold inputs and in a CUDA graph; the
own choice of splits.py is marked. Choices that the chip cannot hold are left out.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import triton

import lookaheadkv_kernels as lkv
from bench.bars.gpu import inputs
from bench.cases import Case
from bench.clock import Calls, graph_time
from lookaheadkv_kernels.triton import splits
from lookaheadkv_kernels.triton.splits import Sweep, ceil_div
from lookaheadkv_kernels.triton.target import target_of

BLOCK_KEYS = (32, 64, 128)
WARPS = (4, 8)
STAGES = (2, 3, 4)
PROGRAMS = (1, 2, 4)


@contextmanager
def chosen(room: str, change: Callable[[Sweep], Sweep]) -> Iterator[list[Sweep]]:
    """Let ``splits.<room>`` give changed sweeps; collects them."""
    original, used = getattr(splits, room), []

    def choose(*args: Any, **options: Any) -> Sweep:
        used.append(change(original(*args, **options)))
        return used[-1]

    setattr(splits, room, choose)
    try:
        yield used
    finally:
        setattr(splits, room, original)


def variants(case: Case, num_sms: int) -> Iterator[Callable[[Sweep], Sweep]]:
    """The choice of splits.py, then all others."""
    yield lambda sweep: sweep
    for keys, warps, stages, programs in itertools.product(BLOCK_KEYS, WARPS, STAGES, PROGRAMS):
        tiles = ceil_div(case.num_keys, keys)
        num_splits, per_split = splits.splits(case.num_kv_heads, tiles, programs * num_sms)
        yield partial(
            replace,
            block_keys=keys,
            num_warps=warps,
            num_stages=stages,
            num_splits=num_splits,
            tiles_per_split=per_split,
        )


def tune(room: str, case: Case) -> None:
    """Time every variant of one room; the fastest come first."""
    sets = inputs(case)
    lses = [lkv.lookahead_attention(*one).lse for one in sets]
    calls: Calls
    if room == "scores":
        calls = [
            partial(lkv.column_scores, q, k, lse) for (q, k, _), lse in zip(sets, lses, strict=True)
        ]
    else:
        calls = [partial(lkv.lookahead_attention, *one) for one in sets]
    lines = []
    for number, change in enumerate(variants(case, target_of(sets[0][0]).num_sms)):
        with chosen(room, change) as used:
            try:
                time = graph_time(calls)
            except triton.runtime.errors.OutOfResources:
                continue
        mark = "  <- splits.py" if number == 0 else ""
        lines.append((time, f"{time:9.1f} us  {used[-1]}{mark}"))
    print(f"{room}, N={case.num_prompt}")
    for _, line in sorted(lines)[:12] + lines[:1]:
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", type=int, default=32_768)
    parser.add_argument("--room", choices=("attention", "scores"), action="append")
    arguments = parser.parse_args()
    lkv.set_backend("triton")
    print(torch.cuda.get_device_name())
    for room in arguments.room or ("scores", "attention"):
        tune(room, Case(num_prompt=arguments.prompt))


if __name__ == "__main__":
    main()
