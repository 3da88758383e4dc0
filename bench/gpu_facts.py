"""Facts about the GPU, as far as they are known: `python -m bench.gpu_facts`.

From cuda-python (`cuda.core`) where it is installed, otherwise from torch, which knows neither
clocks nor the width of the memory bus.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

Facts = dict[str, str | int | float | None]


def _from_cuda_core() -> Facts:
    try:
        from cuda.core.experimental import Device
    except ImportError:
        try:
            from cuda.core import Device
        except ImportError:
            return {}
    properties = Device(0).properties
    kilohertz = properties.memory_clock_rate
    bus = properties.global_memory_bus_width
    return {
        "l2_bytes": properties.l2_cache_size,
        "clock_khz": properties.clock_rate,
        "memory_clock_khz": kilohertz,
        "memory_bus_bits": bus,
        # Two transfers per clock, bus / 8 bytes each.
        "bandwidth_gb_s": 2 * kilohertz * bus / 8 / 1e6 if kilohertz and bus else None,
    }


def facts() -> Facts:
    """Name, size and speed of the first GPU; the versions that matter beside it."""
    properties = torch.cuda.get_device_properties(0)
    found: Facts = {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    try:
        found |= _from_cuda_core()
    except Exception as error:  # a fact that is missing must not stop a check of everything
        found["cuda_core_error"] = str(error)
    return found


def main() -> None:
    """Print the facts, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = facts()
    for name, value in found.items():
        print(f"{name:18} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    print(f"{found['name']}, {found['multiprocessors']} multiprocessors")


if __name__ == "__main__":
    main()
