"""The learning rate at each step, and which samples a step and a process take."""

from __future__ import annotations

import math

from .config import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine down to 0 at ``config.steps`` (paper table 6)."""
    warmup = round(config.warmup * config.steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def sample_indices(step: int, batch_size: int, rank: int, world_size: int) -> range:
    """Samples of this process at a step: the batch dealt out one by one.

    A batch is the same samples for any number of processes, so that one process and many compute
    the same step, and a run can resume with another number of them.
    """
    return range(step * batch_size + rank, (step + 1) * batch_size, world_size)
