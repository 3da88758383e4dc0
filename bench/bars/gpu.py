"""The GPU speed bars of the backend in use: `python -m bench.bars gpu`.

`LOOKAHEADKV_BACKEND=triton` (or cuda) chooses the backend. Every call is captured in a CUDA graph
with cold inputs (several copies in turn, more than the L2 cache holds) and timed with events;
reading K once is its bytes over the bandwidth of a large copy in the same run. The last figure of a
line is the time of a plain call, launches from Python included.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import lookaheadkv_kernels as lkv
from bench.bars import Bar, Step, measure, options
from bench.cases import Case
from bench.clock import Calls, graph_time, plain_time
from bench.peers.pool_topk import pool_topk_sorted
from bench.work import copy_rate

# At most this multiple of the floor, by backend: scores with lse, attention with scores, all of the
# eviction, select.
MOST = {"cuda": (1.3, 1.5, 2.0, 1 / 3), "triton": (1.5, 1.7, 2.0, 0.5)}
# And at most these microseconds, for the compiled kernels at 32K.
MOST_SELECT_US, MOST_EVICT_US = 15.0, 60.0
COPIES = 4
BUDGETS = (128, 2048)


def bar(what: str, calls: Calls, floor: float, most: float) -> Bar:
    """Our time as a multiple of ``floor`` (microseconds), which may be at most ``most``."""
    time, plain = graph_time(calls), plain_time(calls)
    text = f"{time:9.1f} us, plain call {plain:9.1f} us"
    figures = {"microseconds": time, "floor": floor, "most": most, "eager_microseconds": plain}
    return Bar(what, time / floor, most, "at most", text, figures)


def inputs(case: Case) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Random inputs on the GPU, different ones in every copy."""
    copies = []
    for seed in range(COPIES):
        query, key, value = (tensor.cuda() for tensor in case.inputs(seed))
        copies.append((query, key, value))
    return copies


def score_bars(case: Case, bandwidth: float) -> Iterator[Bar]:
    """Scores and attention against reading K (and V) once."""
    read = case.key_bytes / bandwidth
    sets = inputs(case)
    lses = [lkv.lookahead_attention(*one).lse for one in sets]
    name = f"N={case.num_prompt}"
    with_lse, with_value, evict, _ = MOST[lkv.backend_for("cuda")]
    yield bar(
        f"{name} column_scores with lse / reading K",
        [partial(lkv.column_scores, q, k, lse) for (q, k, _), lse in zip(sets, lses, strict=True)],
        read,
        with_lse,
    )
    yield bar(
        f"{name} lookahead_attention / reading K and V",
        [partial(lkv.lookahead_attention, *one) for one in sets],
        2 * read,
        with_value,
    )
    calls = [partial(lkv.score_and_evict, *one, budget=128) for one in sets]
    yield bar(f"{name} score_and_evict / reading K twice", calls, 2 * read, evict)
    if lkv.backend_for("cuda") == "cuda" and case.num_prompt == 32_768:
        yield bar(f"{name} score_and_evict / {MOST_EVICT_US:.0f} us", calls, MOST_EVICT_US, 1)


def select_bars(num_prompt: int) -> Iterator[Bar]:
    """select against max_pool1d + torch.topk + sort of the kept positions."""
    sets = [torch.rand(1, 8, num_prompt, device="cuda") for _ in range(COPIES)]
    for budget in BUDGETS:
        yield bar(
            f"N={num_prompt} select {budget} / max_pool1d + topk + sort",
            [partial(lkv.select, scores, budget) for scores in sets],
            graph_time([partial(pool_topk_sorted, scores, budget) for scores in sets]),
            MOST[lkv.backend_for("cuda")][3],
        )
    if lkv.backend_for("cuda") == "cuda" and num_prompt == 32_768:
        calls = [partial(lkv.select, scores, BUDGETS[-1]) for scores in sets]
        yield bar(f"N={num_prompt} select / {MOST_SELECT_US:.0f} us", calls, MOST_SELECT_US, 1)


def prefill_bars(positions: int) -> Iterator[Bar]:
    """prefill_attention against the fastest backend of scaled_dot_product_attention."""

    def normal(heads: int) -> Tensor:
        return torch.randn(1, heads, positions, 128, dtype=torch.bfloat16, device="cuda")

    sets = [(normal(32), normal(8), normal(8)) for _ in range(2)]
    floors = []
    for backend in (
        torch.nn.attention.SDPBackend.FLASH_ATTENTION,
        torch.nn.attention.SDPBackend.CUDNN_ATTENTION,
    ):
        try:
            with torch.nn.attention.sdpa_kernel(backend):
                attend = partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True)
                floors.append(graph_time([partial(attend, *one) for one in sets]))
        except RuntimeError as error:
            print(f"{backend}: {error}", file=sys.stderr)
    if not floors:
        raise RuntimeError("no backend of scaled_dot_product_attention ran")
    yield bar(
        f"S={positions} prefill_attention / SDPA",
        [partial(lkv.prefill_attention, q, k, v, 32) for q, k, v in sets],
        min(floors),
        1 / 0.9,
    )


def main(arguments: list[str]) -> int:
    """Measure and print; whether a step failed. A bar that is missed is printed as such."""
    parser = options("gpu", __doc__)
    parser.add_argument("--prompt", type=int, action="append", help="prompt keys; repeatable")
    chosen = parser.parse_args(arguments)
    device, backend = torch.cuda.get_device_name(), lkv.backend_for("cuda")
    bandwidth = copy_rate("cuda") / 1e6  # bytes per microsecond
    print(f"{device}, {backend}, copy bandwidth {bandwidth / 1e6:.2f} TB/s", flush=True)
    steps: list[Step] = []
    for num_prompt in chosen.prompt or (32_768, 131_072):
        case = Case(num_prompt=num_prompt)
        steps.append((f"scores N={num_prompt}", partial(score_bars, case, bandwidth)))
        steps.append((f"select N={num_prompt}", partial(select_bars, num_prompt)))
    for positions in (8_192, 32_768):
        steps.append((f"prefill S={positions}", partial(prefill_bars, positions)))
    record = {"device": device, "backend": backend, "bandwidth": bandwidth}
    _, failures = measure(steps, record, chosen.json)
    return int(bool(failures))
