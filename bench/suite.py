"""One measurement of the latency suite: our call and its peers, in turn, on fresh inputs."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bench.cases import Point
from bench.clock import Call, Calls, Clock, clock_of, seconds_of
from bench.memory import peak_extra_bytes
from bench.ratios import Ratio, median_ratio
from bench.work import Rates, Work

LEAST_ROUNDS, MOST_ROUNDS = 7, 60
# Reads a score on the host, which no CUDA graph can capture: it is launched from Python.
WAITING = "kvpress SnapKV"


@dataclass(frozen=True)
class Peer:
    """What someone else's code took, and how many times as long as ours."""

    seconds: float
    ratio: Ratio
    peak_extra_bytes: int


@dataclass(frozen=True)
class Result:
    """One line of the suite's report."""

    room: str
    backend: str
    models: str
    num_prompt: int
    dtype: str
    budget: int | None
    rounds: int
    seconds: float
    work: Work
    rates: Rates
    peak_extra_bytes: int
    peers: dict[str, Peer]

    @property
    def name(self) -> str:
        """The setting: models, dtype, length and budget."""
        budget = "" if self.budget is None else f" budget {self.budget}"
        return f"{self.models} {self.dtype} N={self.num_prompt}{budget}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with percentages of the rates that were measured in this run."""
        floor, rates = self.rates.floor(self.work), self.rates
        data = {**asdict(self), "floor_seconds": floor}
        del data["work"], data["rates"]
        shares = {
            "floor": floor,
            "copy_bandwidth": self.work.bytes / rates.bytes_per_second,
            "gemm_rate": self.work.flops / rates.flops_per_second,
        }
        for name, least in shares.items():
            data[f"percent_of_{name}"] = 100 * least / self.seconds
        for peer in data["peers"].values():
            ratio = peer.pop("ratio")
            peer |= {"ratio": ratio["value"], "low": ratio["low"], "high": ratio["high"]}
        return {
            **data,
            "bytes": self.work.bytes,
            "flops": self.work.flops,
            "copy_bytes_per_second": rates.bytes_per_second,
            "gemm_flops_per_second": rates.flops_per_second,
        }


class Turns:
    """Our call's arguments for pytest-benchmark, each after a round of the peers."""

    def __init__(self, clock: Clock, ours: Calls, peers: Mapping[str, Calls]) -> None:
        self._clock = clock
        self._ours: Iterator[Call] = itertools.cycle(ours)
        self._peers = {name: itertools.cycle(calls) for name, calls in peers.items()}
        self.seconds: dict[str, list[float]] = {name: [] for name in peers}

    def __call__(self) -> tuple[tuple[Call], dict[str, Any]]:
        """What pytest-benchmark calls before each of its rounds."""
        for name, calls in self._peers.items():
            self.seconds[name].append(seconds_of(self._clock, next(calls)))
        return (next(self._ours),), {}


def rounds_within(seconds: float, clock: Clock, calls: Mapping[str, Calls]) -> int:
    """How many rounds of all calls, each of which has run before, take about that long."""
    once = sum(seconds_of(clock, several[0]) for several in calls.values())
    return max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / once)))


def measure(
    benchmark: Any,
    room: str,
    backend: str,
    point: Point,
    budget: int | None,
    ours: Calls,
    peers: Mapping[str, Calls],
    work: Work,
    rates: Rates,
    *,
    rounds: int | None,
    seconds: float,
) -> Result:
    """Time ours beside its peers through pytest-benchmark.

    Args:
        benchmark: the fixture; on a GPU its timer must be `gpu_timer`.
        room: what is timed.
        backend: which backend our call runs on.
        point: the setting.
        budget: entries to keep, where the room depends on it.
        ours: our call on each set of inputs.
        peers: theirs, by name.
        work: the least that has to be done.
        rates: of this device in this run.
        rounds: how many; None means as many as ``seconds`` allow.
        seconds: about how long to measure.
    """
    device = "cuda" if backend != "cpu" else "cpu"
    clock = clock_of(device)
    memory = {name: peak(calls, device) for name, calls in {"": ours, **peers}.items()}
    ready = {
        name: calls if name == WAITING else [clock.prepare(call) for call in calls]
        for name, calls in {"": ours, **peers}.items()
    }
    count = rounds or rounds_within(seconds, clock, ready)
    ours = ready.pop("")
    turns = Turns(clock, ours, ready)
    benchmark.group = f"{room} {point.label}" + ("" if budget is None else f"-budget{budget}")
    benchmark.pedantic(_call, setup=turns, rounds=count, warmup_rounds=1)
    own = list(benchmark.stats.stats.data)
    result = Result(
        room,
        backend,
        point.models,
        point.num_prompt,
        point.case.dtype_name,
        budget,
        count,
        statistics.median(own),
        work,
        rates,
        memory[""],
        {
            name: Peer(
                statistics.median(taken[-count:]),
                median_ratio(taken[-count:], own),
                memory[name],
            )
            for name, taken in turns.seconds.items()
        },
    )
    benchmark.extra_info.update(result.as_dict())
    return result


def _call(call: Call) -> object:
    return call()


def peak(calls: Calls, device: torch.device | str) -> int:
    """Extra memory of the second call: the first allocates what is kept, or compiles."""
    calls[0]()
    return peak_extra_bytes(calls[-1], device)
