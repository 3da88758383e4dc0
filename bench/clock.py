"""Timing one call on a device: wall time on a CPU; events behind a flushed L2 cache on a GPU."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]


class CpuClock:
    """Wall time. Calling it gives the time now, as pytest-benchmark wants its timers."""

    def __call__(self) -> float:
        return time.perf_counter()

    def prepare(self, call: Call) -> Call:
        """Nothing has to be done to a call on a CPU."""
        return call


class GpuClock:
    """Time on the current stream, between events.

    Every second call gives the seconds since the one before. The first of the two fills a buffer
    larger than the L2 cache, which leaves nothing of earlier calls there, and whose time hides
    that of the launch: the work is in the queue before the first event is reached.
    """

    def __init__(self) -> None:
        l2_bytes = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 2**26)
        self._flush = torch.empty(4 * l2_bytes, dtype=torch.uint8, device="cuda")
        self._start: torch.cuda.Event | None = None

    def __call__(self) -> float:
        event = torch.cuda.Event(enable_timing=True)
        if self._start is None:
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
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay


Clock = CpuClock | GpuClock


@functools.cache
def _gpu_clock() -> GpuClock:
    return GpuClock()


def gpu_timer() -> float:
    """The GPU's clock as a function that can be named before there is a GPU."""
    return _gpu_clock()()


def clock_of(device: torch.device | str) -> Clock:
    """The clock for tensors there."""
    return _gpu_clock() if torch.device(device).type == "cuda" else CpuClock()


def seconds_of(clock: Clock, call: Call) -> float:
    """Seconds of one call."""
    start = clock()
    call()
    return clock() - start
