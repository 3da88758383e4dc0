"""A sample as text of any size, and the search for the size that fits a number of tokens."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol


class Text(NamedTuple):
    """A prompt as text."""

    user: str
    answer_start: str


class Draft(Protocol):
    """A sample whose haystack may have any size; everything random about it is already drawn.

    Attributes:
        references: strings that the answer has to contain.
        facts: where the needles are.
        least: smallest haystack.
        most: largest haystack; None: unlimited.
        tokens_a_unit: a guess, to start the search from.
        has_filler: parts of a unit can fill the space that whole units leave.
    """

    references: tuple[str, ...]
    facts: dict[str, Any]
    least: int
    most: int | None
    tokens_a_unit: int
    has_filler: bool

    def text(self, size: int, filler: int = 0) -> Text:
        """The prompt with ``size`` units of haystack and ``filler`` small parts."""


def drawing(*parts: object) -> random.Random:
    """Random numbers that depend on these parts alone: the same in every process."""
    return random.Random("/".join(map(str, parts)))


def largest_fitting(
    count: Callable[[int], int], limit: int, least: int, most: int | None, per_unit: int
) -> int:
    """The size in [``least``, ``most``] with ``count(size) <= limit < count(size + 1)``.

    Counts are nearly linear in the size, so that interpolation finds it in a few steps; every
    third step halves the interval, whatever the counts.

    Raises:
        ValueError: not even ``least`` fits; the message is the count.
    """
    low, low_count = least, count(least)
    if low_count > limit:
        raise ValueError(str(low_count))
    first, first_count = low, low_count
    high: int | None = None
    high_count = step = 0
    while low != most and (high is None or high - low > 1):
        step += 1
        room = limit - low_count
        if high is not None:
            guess = low + room * (high - low) // (high_count - low_count)
            guess = (low + high) // 2 if step % 3 == 0 else guess
            guess = min(max(guess, low + 1), high - 1)
        else:
            grown = low_count - first_count
            ahead = room * (low - first) // grown if grown > 0 else room // per_unit
            guess = low + ahead + 1
            guess = guess if most is None else min(guess, most)
        guess_count = count(guess)
        if guess_count <= limit:
            low, low_count = guess, guess_count
        else:
            high, high_count = guess, guess_count
    return low
