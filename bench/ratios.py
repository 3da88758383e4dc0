"""How many times faster one call is than another, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
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
