"""Budgets, the number of entries that a layer keeps, and checks of options."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

Budget = int | float | Sequence[int] | Sequence[float]


def check_at_least(name: str, value: int, least: int) -> None:
    """Refuse an option that is no whole number, or has no meaning below ``least``.

    Raises:
        ValueError: names the option and its value.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be >= {least}, got {value}")


def check_budget(budget: object, num_layers: int) -> Budget:
    """Refuse a budget that no prompt could have; returns it in Python's own numbers.

    NumPy's numbers and arrays are budgets, too.

    Raises:
        ValueError: not an entry count >= 1, a ratio in (0, 1], or one of these for each layer.
    """
    plain = _plain(budget)
    if isinstance(plain, list | tuple):
        if len(plain) != num_layers:
            raise ValueError(
                f"budget: {len(plain)} entries for a model of {num_layers} layers; give one a layer"
            )
        return [_one(value) for value in plain]
    return _one(plain)


def _plain(value: object) -> object:
    """What ``tolist`` makes of the numbers, arrays and tensors of other libraries."""
    convert = getattr(value, "tolist", None)
    return value if convert is None else convert()


def _one(value: object) -> int | float:
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        kind = type(value).__name__
        raise ValueError(
            "budget must be a count or a ratio, or a list with one of these per layer, "
            f"got {value!r} ({kind})"
        )
    if isinstance(value, float) and not 0.0 < value <= 1.0:
        raise ValueError(f"budget as a ratio must be in (0, 1], got {value}")
    if isinstance(value, int) and value < 1:
        raise ValueError(f"budget must be >= 1, got {value}")
    return value


def budget_of(budget: Budget, index: int, num_tokens: int) -> int:
    """Entries of layer ``index``: the count itself, or the ratio of ``num_tokens``, rounded up."""
    value = budget[index] if isinstance(budget, Sequence) else budget
    if isinstance(value, int):
        return value
    # 0.1 * 100 is 10.000000000000002 in some orders of operation: that is 10, not 11.
    return max(1, math.ceil(value * num_tokens - 1e-6))
