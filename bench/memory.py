"""Peak extra memory of a call, and what glibc does with freed memory."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

from bench.clock import Call

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let glibc reuse what tensors free, rather than hand it back and fetch it page by page.

    What goes back depends on the order and sizes of all earlier allocations: a method that differs
    in 32 rows would differ in page faults. (Linux only.)
    """
    libc = ctypes.CDLL("libc.so.6")
    for option, value in ((M_TRIM_THRESHOLD, 2**31 - 1), (M_MMAP_MAX, 0)):
        if libc.mallopt(option, value) != 1:
            raise RuntimeError(f"mallopt({option}, {value}) failed")


def peak_extra_bytes(call: Call, device: torch.device | str = "cpu") -> int:
    """Most bytes that the call holds at once beyond what was held before, its results included.

    Measured by the resident set on a CPU (Linux only), by torch's allocator on a GPU.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
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
