"""Times and overheads of a method, from its phases and a chip's rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from . import paper, workload
from .hardware import BINARY, DECIMAL, Hardware, Rates, Units
from .workload import Phase, Setting


@dataclass(frozen=True)
class Accounting:
    """What is counted, and in which units.

    Args:
        name: of it.
        units: of the chip's rates, and of what is printed.
        workloads: phases of each method.
        chip: the one that is meant unless another is named.
    """

    name: str
    units: Units
    workloads: Mapping[str, Callable[[Setting, int], list[Phase]]]
    chip: str


OURS = Accounting("prediction", DECIMAL, workload.WORKLOADS, "h100-sxm")
PAPER = Accounting("paper", BINARY, paper.WORKLOADS, "h100-pcie")


class Timed(NamedTuple):
    """A phase and how long it takes."""

    phase: Phase
    seconds: float


@dataclass(frozen=True)
class Prediction:
    """What a method costs at one prompt length.

    Args:
        method: its name.
        context: prompt tokens.
        phases: what it does until the first token is known and the cache is cut.
        baseline: seconds of the forward pass alone.
    """

    method: str
    context: int
    phases: tuple[Timed, ...]
    baseline: float

    @property
    def flops(self) -> int:
        """Operations."""
        return sum(timed.phase.flops for timed in self.phases)

    @property
    def bytes(self) -> int:
        """Memory traffic, bytes."""
        return sum(timed.phase.bytes for timed in self.phases)

    @property
    def ttft(self) -> float:
        """Seconds to the first token, eviction included."""
        return sum(timed.seconds for timed in self.phases)

    @property
    def overhead(self) -> float:
        """Seconds beyond the forward pass alone."""
        return self.ttft - self.baseline

    @property
    def overhead_ratio(self) -> float:
        """The overhead divided by the time of the forward pass alone."""
        return self.overhead / self.baseline


def seconds(phase: Phase, rates: Rates) -> float:
    """How long a phase takes."""
    compute = phase.flops / rates.flops_per_second
    memory = phase.bytes / rates.bytes_per_second
    return {
        "roofline": max(compute, memory),
        "serial": compute + memory,
        "compute": compute,
        "memory": memory,
        "untimed": 0.0,
    }[phase.timing]


def predict(
    setting: Setting,
    hardware: Hardware,
    method: str,
    context: int,
    accounting: Accounting = OURS,
) -> Prediction:
    """What ``method`` costs.

    Args:
        setting: model, budget and sizes of the method.
        hardware: the chip.
        method: such as ``"lookaheadkv"``; ``accounting.workloads`` lists them all.
        context: prompt tokens.
        accounting: :data:`OURS` or :data:`PAPER`.

    Raises:
        ValueError: an unknown method, a context below 1, or a setting that the method cannot have.
    """
    if method not in accounting.workloads:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(accounting.workloads)}")
    if context < 1:
        raise ValueError(f"context must be >= 1, got {context}")
    rates = hardware.rates(accounting.units)

    def timed(name: str) -> tuple[Timed, ...]:
        phases = accounting.workloads[name](setting, context)
        return tuple(Timed(phase, seconds(phase, rates)) for phase in phases)

    baseline = sum(part.seconds for part in timed("forward"))
    return Prediction(method, context, timed(method), baseline)
