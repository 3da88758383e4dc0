"""RULER's two metrics, for one answer, from 0 to 1 (the benchmark prints them times 100)."""

from __future__ import annotations

import re
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")


def cleaned(prediction: str) -> str:
    """The prediction as the benchmark compares it: no control characters, no outer spaces."""
    return _CONTROL.sub("\n", prediction.strip()).strip()


def string_match_all(prediction: str, references: Sequence[str]) -> float:
    """Share of the references that occur in the prediction, whatever their case."""
    text = cleaned(prediction).lower()
    return sum(reference.lower() in text for reference in references) / len(references)


def string_match_part(prediction: str, references: Sequence[str]) -> float:
    """1 if any reference occurs in the prediction, whatever its case."""
    text = cleaned(prediction).lower()
    return float(any(reference.lower() in text for reference in references))
