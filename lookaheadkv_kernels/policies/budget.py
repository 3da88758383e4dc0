"""Budgets, the number of entries that a layer keeps, and checks of options."""

from __future__ import annotations

import math
from collections.abc import Sequence

Budget = int | float | Sequence[int] | Sequence[float]


def check_at_least(name: str, value: int, least: int) -> None:
    """Refuse an option that has no meaning below ``least``.

    Raises:
        ValueError: names the option and its value.
    """
    if value < least:
        raise ValueError(f"{name} must be >= {least}, got {value}")


def check_budget(budget: Budget, num_layers: int) -> None:
    """Refuse a budget that no prompt could have.

    Raises:
        ValueError: not an entry count >= 1, a ratio in (0, 1], or one of these for each layer.
    """
    if isinstance(budget, Sequence):
        if len(budget) != num_layers:
            raise ValueError(
                f"budget: {len(budget)} entries for a model of {num_layers} layers; "
                "give one a layer"
            )
        values: Sequence[int | float] = budget
    else:
        values = (budget,)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"budget must be a count or a ratio, got {value!r}")
        if isinstance(value, float) and not 0.0 < value <= 1.0:
            raise ValueError(f"budget as a ratio must be in (0, 1], got {value}")
        if isinstance(value, int) and value < 1:
            raise ValueError(f"budget must be >= 1, got {value}")


def budget_of(budget: Budget, index: int, num_tokens: int) -> int:
    """Entries of layer ``index``: the count itself, or the ratio of ``num_tokens``, rounded up."""
    value = budget[index] if isinstance(budget, Sequence) else budget
    if isinstance(value, int):
        return value
    # 0.1 * 100 is 10.000000000000002 in some orders of operation: that is 10, not 11.
    return max(1, math.ceil(value * num_tokens - 1e-6))
