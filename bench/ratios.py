"""How many times faster one call is than another, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
MOST_BATCHES = 6
ATTEMPTS = 3
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ratio:
    """A median ratio and its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f}x [{self.low:.2f}, {self.high:.2f}]"


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """Median over the rounds of ``numerator / denominator``, with a bootstrap interval of 95 %.

    Rounds stay pairs: both calls of a round met the same machine. The interval is that of the
    percentiles of the medians of resampled rounds (Efron, 1979).

    Raises:
        ValueError: no rounds, or not as many of both.
    """
    if not numerator or len(numerator) != len(denominator):
        raise ValueError(
            f"rounds must be pairs, got {len(numerator)} and {len(denominator)} of them"
        )
    ratios = np.asarray(numerator) / np.asarray(denominator)
    draws = np.random.default_rng(0).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(np.median(ratios[draws], axis=1), [tail, 100 - tail])
    return Ratio(float(np.median(ratios)), float(low), float(high))


@dataclass(frozen=True)
class Verdict:
    """A ratio held against a limit."""

    ratio: Ratio  # of the last attempt
    seconds: float  # the numerator's median
    attempts: int
    slow: bool


Batch = Callable[[], tuple[list[float], list[float]]]  # numerators and denominators of some rounds


def attempt(batch: Batch, limit: float) -> tuple[Ratio, float]:
    """Rounds until the interval leaves the limit on one side, or there have been enough."""
    numerator: list[float] = []
    denominator: list[float] = []
    for _ in range(MOST_BATCHES):
        above, below = batch()
        numerator += above
        denominator += below
        ratio = median_ratio(numerator, denominator)
        if not ratio.low <= limit <= ratio.high:
            break
    return ratio, float(np.median(numerator))


def judge(
    batch: Batch, limit: float, *, most_seconds: float = float("inf"), attempts: int = ATTEMPTS
) -> Verdict:
    """Whether the ratio is above ``limit`` in each of ``attempts`` attempts.

    What disturbs a machine disturbs some rounds, or an attempt, seldom all of them.

    Args:
        batch: measures some rounds.
        limit: of the ratio.
        most_seconds: of the numerator's median.
        attempts: the first that is quick enough ends them.
    """
    count, slow = 0, True
    while slow and count < attempts:
        ratio, seconds = attempt(batch, limit)
        slow = ratio.value > limit or seconds > most_seconds
        count += 1
    return Verdict(ratio, seconds, count, slow)
