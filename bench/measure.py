"""Timing and memory of callables on this CPU: interleaved rounds, medians, peak resident set."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Call = Callable[[], object]


def interleaved(calls: Mapping[str, Call], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of every call in every round; each round runs all of them once, in turn.

    Whatever else the machine does then falls on all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(warmup):
            call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_extra_bytes(call: Call) -> int:
    """Bytes by which the resident set rises above its start while the call runs (Linux only)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # kept memory would hide what the call takes
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present size
    before = _status_bytes("VmRSS")
    call()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
