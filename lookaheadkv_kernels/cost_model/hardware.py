"""Peak rates of chips, as data, and the share of them that is assumed to be reached."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


class Units(NamedTuple):
    """What a "tera" and a "giga" are."""

    tera: int
    giga: int
    flop_name: str
    byte_name: str


DECIMAL = Units(10**12, 10**9, "TFLOP", "GB")
# The paper's printed cells come out in these alone: its 60 TFLOPs at 4K are 60.0 * 2^40 operations.
BINARY = Units(2**40, 2**30, "TiFLOP", "GiB")


class Rates(NamedTuple):
    """The rates that a chip is assumed to reach."""

    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class Hardware:
    """One chip.

    Args:
        name: by which the command knows it.
        tflops: peak of dense 16-bit matrix products with fp32 accumulation, TFLOP/s.
        gbps: peak bandwidth of its memory, GB/s.
        flops_efficiency: reached share of ``tflops``; the paper's appendix B takes 0.7.
        memory_efficiency: reached share of ``gbps``; the paper's appendix B takes 0.9.

    Raises:
        ValueError: a rate that is not above zero, or an efficiency outside (0, 1].
    """

    name: str
    tflops: float
    gbps: float
    flops_efficiency: float = 0.7
    memory_efficiency: float = 0.9

    def __post_init__(self) -> None:
        for field in ("tflops", "gbps"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{field} must be finite and > 0, got {value}")
        for field in ("flops_efficiency", "memory_efficiency"):
            value = getattr(self, field)
            if not 0 < value <= 1:
                raise ValueError(f"{field} must be in (0, 1], got {value}")

    def rates(self, units: Units) -> Rates:
        """Reached FLOP/s and bytes/s, where the chip's tera and giga are ``units``."""
        return Rates(
            self.tflops * units.tera * self.flops_efficiency,
            self.gbps * units.giga * self.memory_efficiency,
        )


# NVIDIA's data sheets: tensor-core BF16 without sparsity, and memory bandwidth.
HARDWARE = {
    chip.name: chip
    for chip in (
        Hardware("h100-sxm", 989, 3350),
        Hardware("h100-pcie", 756, 2000),  # the paper's
        Hardware("h200", 989, 4800),
        Hardware("a100", 312, 2039),  # SXM, 80 GB
    )
}


def find_hardware(name: str) -> Hardware:
    """A chip by name.

    Raises:
        ValueError: it is not known.
    """
    if name not in HARDWARE:
        raise ValueError(f"unknown hardware {name!r}; known: {', '.join(HARDWARE)}")
    return HARDWARE[name]
