"""The one timer of the benchmarks: wall time, CUDA events, CUDA graphs, rounds in turn."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Call = Callable[[], object]
Calls = Sequence[Call]  # the same call on several inputs
REPLAYS = 25


class WallClock:
    """Wall time. On a GPU it first waits until everything that was queued there has run.

    Calling it gives the time now, as pytest-benchmark wants its timers.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._waits = torch.device(device).type == "cuda"

    def __call__(self) -> float:
        if self._waits:
            torch.cuda.synchronize()
        return time.perf_counter()

    def prepare(self, call: Call) -> Call:
        """The call as it is: wall time includes its launches from Python."""
        return call


class GpuClock:
    """Time on the current stream, between events.

    Every second call gives the seconds since the one before. The first of the two fills a buffer
    larger than the L2 cache: that evicts the data of earlier calls, and takes long enough to hide
    the launch, so that the work is in the queue before the first event is reached.

    Args:
        flush: whether to fill that buffer; not needed where every call has cold inputs anyway.
    """

    def __init__(self, flush: bool = True) -> None:
        l2_bytes = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 2**26)
        size = 4 * l2_bytes if flush else 0
        self._flush = torch.empty(size, dtype=torch.uint8, device="cuda")
        self._start: torch.cuda.Event | None = None

    def __call__(self) -> float:
        event = torch.cuda.Event(enable_timing=True)
        if self._start is None:
            if self._flush.numel():
                self._flush.zero_()
            event.record()
            self._start = event
            return 0.0
        event.record()
        event.synchronize()
        seconds: float = self._start.elapsed_time(event) * 1e-3
        self._start = None
        return seconds

    def prepare(self, call: Call) -> Call:
        """The call as a CUDA graph, without its launches from Python."""
        self._start = None  # an error may have come between two events
        return captured([call])


Clock = WallClock | GpuClock


@functools.cache
def _gpu_clock() -> GpuClock:
    return GpuClock()


def gpu_timer() -> float:
    """The GPU's clock as a function that can be named before there is a GPU."""
    return _gpu_clock()()


def clock_of(device: torch.device | str) -> Clock:
    """The clock for tensors there: events on a GPU, wall time elsewhere."""
    return _gpu_clock() if torch.device(device).type == "cuda" else WallClock()


def seconds_of(clock: Clock, call: Call) -> float:
    """Seconds of one call."""
    start = clock()
    call()
    return clock() - start


def interleaved(
    calls: Mapping[str, Call], rounds: int, warmup: int = 1, clock: Clock | None = None
) -> dict[str, list[float]]:
    """Seconds of every call in every round; each round runs all of them once, in turn.

    Whatever else the machine does then falls on all of them alike.
    """
    clock = clock or WallClock()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(warmup):
            call()
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(seconds_of(clock, call))
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of every call's rounds."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def captured(calls: Calls) -> Call:
    """The replay of a CUDA graph that runs all calls."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        _run(calls)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _run(calls)
    return graph.replay


def graph_time(calls: Calls) -> float:
    """Median microseconds of one call inside a replayed CUDA graph of all of them.

    The inputs are cold if all calls' inputs together exceed the L2 cache.
    """
    return _microseconds(captured(calls), len(calls))


def plain_time(calls: Calls) -> float:
    """Median microseconds of one call on a GPU, launched from Python; all of them in turn."""
    return _microseconds(functools.partial(_run, calls), len(calls))


def _run(calls: Calls) -> None:
    for call in calls:
        call()


def _microseconds(run: Call, calls: int) -> float:
    """Median of one of the ``calls`` calls that ``run`` makes."""
    run()
    clock = GpuClock(flush=False)
    return 1e6 * statistics.median(seconds_of(clock, run) for _ in range(REPLAYS)) / calls
