"""The learning rate at each step, and which samples a process takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .config import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine down to 0 at ``config.steps`` (paper table 6)."""
    warmup = round(config.warmup * config.steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def shares(costs: Sequence[float], num_shares: int) -> list[list[int]]:
    """Distribute items over processes so that the largest total cost is small (longest first).

    The result is the same on every process. Which process takes which sample does not change a
    step, since gradients are added up; so a run can continue with another number of processes.
    """
    dealt: list[list[int]] = [[] for _ in range(num_shares)]
    loads = [0.0] * num_shares
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        share = loads.index(min(loads))
        dealt[share].append(index)
        loads[share] += costs[index]
    return dealt
