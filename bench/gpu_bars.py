"""The GPU speed bars of the backend in use, measured and judged: `python -m bench.gpu_bars`.

`LOOKAHEADKV_BACKEND=triton` (or cuda) chooses the backend; `--json FILE` keeps the figures. Every
call is captured in a CUDA graph with cold inputs (several copies in turn, more than the L2 cache
holds) and timed with events; reading K once is bytes over the bandwidth of a large copy in the same
run. The last column is the time of a plain call, launches from Python included. Time may run out:
every line is printed as soon as it is measured, and the file rewritten after every group of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import lookaheadkv_kernels as lkv
from bench.cases import Case
from lookaheadkv_kernels.lookahead.files import write_atomically

# At most this multiple of the floor, by backend: scores with lse, attention with scores, all of the
# eviction, select.
MOST = {"cuda": (1.3, 1.5, 2.0, 1 / 3), "triton": (1.5, 1.7, 2.0, 0.5)}
# And at most these microseconds, for the compiled kernels at 32K.
MOST_SELECT_US, MOST_EVICT_US = 15.0, 60.0
COPIES = 4
REPLAYS = 25
BUDGETS = (128, 2048)

Calls = Sequence[Callable[[], object]]
Record = dict[str, object]


@dataclass(frozen=True)
class Bar:
    """One line: our time as a multiple of ``floor``, which must be at most ``most``."""

    what: str
    microseconds: float
    floor: float
    most: float
    eager_microseconds: float

    @property
    def ratio(self) -> float:
        return self.microseconds / self.floor

    @property
    def met(self) -> bool:
        return self.ratio <= self.most

    def __str__(self) -> str:
        return (
            f"{self.what:56} {self.microseconds:9.1f} us  x{self.ratio:5.2f} (<= {self.most:.2f}) "
            f"{'met' if self.met else 'NOT MET'}  plain call {self.eager_microseconds:9.1f} us"
        )


Group = tuple[str, Callable[[], Iterable[Bar]]]


def _events(run: Callable[[], object], rounds: int, calls: int) -> float:
    """Median microseconds of one of ``calls`` calls that ``run`` makes."""
    times: list[float] = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / calls)
    return statistics.median(times)


def graph_time(calls: Calls) -> float:
    """Median microseconds of a call inside a replayed CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    return _events(graph.replay, REPLAYS, len(calls))


def plain_time(calls: Calls) -> float:
    """Median microseconds of a call launched from Python."""

    def run() -> None:
        for call in calls:
            call()

    run()
    return _events(run, REPLAYS, len(calls))


def copy_bandwidth() -> float:
    """Bytes per microsecond of a large copy, read and written bytes counted."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    read_and_written = 2 * float(source.nbytes)
    return read_and_written / graph_time([lambda: target.copy_(source)])


def bar(what: str, calls: Calls, floor: float, most: float) -> Bar:
    return Bar(what, graph_time(calls), floor, most, plain_time(calls))


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


def eager_select(scores: Tensor, budget: int) -> Tensor:
    """Pool, Top-K and ascending positions in plain PyTorch."""
    pooled = F.max_pool1d(scores, 7, 1, 3)
    return pooled.topk(budget, sorted=False).indices.sort().values


def select_bars(num_prompt: int) -> Iterator[Bar]:
    """select against max_pool1d + torch.topk + sort of the kept positions."""
    sets = [torch.rand(1, 8, num_prompt, device="cuda") for _ in range(COPIES)]
    for budget in BUDGETS:
        yield bar(
            f"N={num_prompt} select {budget} / max_pool1d + topk + sort",
            [partial(lkv.select, scores, budget) for scores in sets],
            graph_time([partial(eager_select, scores, budget) for scores in sets]),
            MOST[lkv.backend_for("cuda")][3],
        )
    if lkv.backend_for("cuda") == "cuda" and num_prompt == 32_768:
        calls = [partial(lkv.select, scores, BUDGETS[-1]) for scores in sets]
        yield bar(f"N={num_prompt} select / {MOST_SELECT_US:.0f} us", calls, MOST_SELECT_US, 1)


def prefill_bars(positions: int) -> Iterator[Bar]:
    """prefill_attention against scaled_dot_product_attention, its fastest backend."""

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


def measure(groups: Iterable[Group], record: Record, path: Path | None) -> bool:
    """Whether every group came to its end. What was measured goes to ``record`` and ``path``.

    A group that fails takes no other's figures along.
    """
    bars: list[Record] = []
    failures: list[str] = []
    record |= {"bars": bars, "failures": failures}
    met = 0
    for name, group in groups:
        try:
            for one in group():
                print(one, flush=True)
                bars.append(asdict(one))
                met += one.met
        except Exception as error:
            failures.append(f"{name}: {error!r}")
            print(f"FAILED {failures[-1]}", flush=True)
        if path is not None:
            write_atomically(path, json.dumps(record, indent=1).encode())
    print(f"{met} of {len(bars)} bars met, {len(failures)} groups failed")
    return not failures


def main() -> None:
    """Measure, print a table, and say which bars are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--prompt", type=int, action="append")
    arguments = parser.parse_args()
    device, backend = torch.cuda.get_device_name(), lkv.backend_for("cuda")
    bandwidth = copy_bandwidth()
    print(f"{device}, {backend}, copy bandwidth {bandwidth / 1e6:.2f} TB/s", flush=True)
    groups: list[Group] = []
    for num_prompt in arguments.prompt or (32_768, 131_072):
        case = Case(num_prompt=num_prompt)
        groups.append((f"scores N={num_prompt}", partial(score_bars, case, bandwidth)))
        groups.append((f"select N={num_prompt}", partial(select_bars, num_prompt)))
    for positions in (8_192, 32_768):
        groups.append((f"prefill S={positions}", partial(prefill_bars, positions)))
    record: Record = {"device": device, "backend": backend, "bandwidth": bandwidth}
    if not measure(groups, record, arguments.json):
        sys.exit(1)


if __name__ == "__main__":
    main()
