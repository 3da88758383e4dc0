"""Keys and values of needles."""

from __future__ import annotations

import random
import uuid

from .words import (
    ADJECTIVES,
    CITIES,
    COLOURS,
    FOODS,
    JOBS,
    MONTHS,
    NAMES,
    NOUNS,
    PLACES,
    words_of,
)

VALUE_KINDS = {"number": 0.5, "word": 0.15, "uuid": 0.1, "phrase": 0.1, "date": 0.05, "code": 0.1}
KEY_KINDS = {"pair": 0.5, "noun": 0.1, "name": 0.15, "uuid": 0.1, "number": 0.08, "code": 0.07}
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
LISTS = {
    "place": PLACES,
    "job": JOBS,
    "city": CITIES,
    "food": FOODS,
    "colour": COLOURS,
    "month": MONTHS,
    "name": NAMES,
}


class Words:
    """Random keys and values of one split."""

    def __init__(self, rng: random.Random, split: str) -> None:
        self.rng = rng
        self.adjectives = words_of(split, ADJECTIVES)
        self.nouns = words_of(split, NOUNS)
        self.names = words_of(split, NAMES)

    def pair(self, joiner: str) -> str:
        """An adjective and a noun."""
        return f"{self.rng.choice(self.adjectives)}{joiner}{self.rng.choice(self.nouns)}"

    def uuid(self) -> str:
        """A version 4 UUID."""
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def number(self, digits: int) -> str:
        """A number without leading zeros."""
        return str(self.rng.randrange(10 ** (digits - 1), 10**digits))

    def code(self) -> str:
        """Letters and digits, such as ``KX-4821``."""
        letters = "".join(self.rng.choices(LETTERS, k=self.rng.randint(2, 4)))
        return f"{letters}{self.rng.choice(('-', '', '/'))}{self.number(self.rng.randint(2, 5))}"

    def key(self, kind: str) -> str:
        """A key of a needle; ``kind`` as in `KEY_KINDS`."""
        if kind == "pair":
            return self.pair("-")
        if kind == "noun":
            return f"the {self.pair(' ')}"
        if kind == "name":
            return f"{self.rng.choice(self.names)} {self.rng.choice(self.nouns).capitalize()}"
        if kind == "uuid":
            return self.uuid()
        return self.number(self.rng.randint(3, 7)) if kind == "number" else self.code()

    def value(self, kind: str, digits: int) -> str:
        """A value of a needle; ``kind`` as in `VALUE_KINDS`."""
        if kind == "number":
            return self.number(digits)
        if kind == "word":
            return self.pair("-") if self.rng.random() < 0.5 else self.rng.choice(self.nouns)
        if kind == "uuid":
            return self.uuid()
        if kind == "phrase":
            return f"{self.pair(' ')} and {self.pair(' ')}"
        if kind == "date":
            month = self.rng.choice(MONTHS)
            return f"{month} {self.rng.randint(1, 28)}, {self.rng.randint(1900, 2040)}"
        return self.code()

    def slot(self, kind: str) -> str:
        """The value of a made-up fact."""
        if kind == "number":
            return self.number(self.rng.randint(2, 5))
        if kind == "thing":
            return self.pair(" ")
        # Names are of this split; the other lists are short and serve both.
        return self.rng.choice(self.names if kind == "name" else LISTS[kind])
