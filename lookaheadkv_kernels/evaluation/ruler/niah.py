"""Needles in a haystack: eight of RULER's tasks."""

from __future__ import annotations

import random
import uuid
from typing import Any, NamedTuple

from .draft import Text
from .templates import NEEDLE, NIAH_MANY, NIAH_ONE, NOISE
from .texts import Essay, WordLists, ends_sentence

NUM_DEPTHS = 40  # in an essay, needles stand at some of so many evenly spaced places


class Niah(NamedTuple):
    """The settings in which the eight tasks differ."""

    haystack: str  # noise, essay, needles
    keys: str = "words"
    values: str = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1


NIAH_TASKS = {
    "niah_single_1": Niah("noise"),
    "niah_single_2": Niah("essay"),
    "niah_single_3": Niah("essay", values="uuids"),
    "niah_multikey_1": Niah("essay", num_keys=4),
    "niah_multikey_2": Niah("needles"),
    "niah_multikey_3": Niah("needles", keys="uuids", values="uuids"),
    "niah_multivalue": Niah("essay", num_values=4),
    "niah_multiquery": Niah("essay", num_keys=4, num_queries=4),
}


def noise_lines(num_sentences: int) -> list[str]:
    """The benchmark's five sentences repeated, five per line; the last line may be shorter."""
    whole, rest = divmod(num_sentences, len(NOISE))
    lines = [" ".join(NOISE)] * whole
    return [*lines, " ".join(NOISE[:rest])] if rest else lines


class NiahDraft:
    """A sample of one of the tasks; see :class:`~.draft.Draft`.

    Units of haystack are sentences of noise, words of an essay, or needles of other keys. Needles
    are long, so that up to one of them is filled with noise.
    """

    has_filler: bool
    most: int | None = None

    def __init__(
        self, rng: random.Random, task: Niah, essay: Essay | None, words: WordLists
    ) -> None:
        self._rng, self._task, self._essay, self._words = rng, task, essay, words
        keys: list[str] = []
        while len(keys) < task.num_keys:
            key = self._draw(task.keys)
            if key not in keys:
                keys.append(key)
        values = {key: [self._draw(task.values) for _ in range(task.num_values)] for key in keys}
        needles = [self._needle(key, value) for key in keys for value in values[key]]
        rng.shuffle(needles)
        self.needles = needles
        self._keys = set(keys)
        queries = rng.sample(keys, task.num_queries)
        self.query = queries[0]
        if len(queries) > 1:
            self.query = ", ".join(queries[:-1]) + f", and {queries[-1]}"
        self.references = tuple(value for key in queries for value in values[key])
        if essay is not None:
            steps = rng.sample(range(NUM_DEPTHS), len(needles))
            self.depths = sorted(round(100 * step / (NUM_DEPTHS - 1)) / 100 for step in steps)
        else:
            self.depths = sorted(rng.random() for _ in needles)
        self._start = 0 if essay is None else rng.choice(essay.starts)
        self._others: list[str] = []  # needles of other keys, drawn as they are needed
        self.facts: dict[str, Any] = {"depths": self.depths, "query": self.query}
        self.least = 1
        self.has_filler = task.haystack == "needles"
        self.tokens_a_unit = {"noise": 5, "essay": 2, "needles": 25}[task.haystack]
        if task.keys == "uuids":
            self.tokens_a_unit = 90

    def _draw(self, kind: str) -> str:
        if kind == "numbers":
            return str(self._rng.randrange(1_000_000, 10_000_000))
        if kind == "uuids":
            return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
        words = self._words
        return f"{self._rng.choice(words.adjectives)}-{self._rng.choice(words.nouns)}"

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(kind=self._task.values, key=key, value=value)

    def _other_needles(self, count: int) -> list[str]:
        while len(self._others) < count:
            key = self._draw(self._task.keys)
            if key not in self._keys:  # a second value of the asked key would be as right
                self._others.append(self._needle(key, self._draw(self._task.values)))
        return self._others[:count]

    def _context(self, size: int, filler: int) -> str:
        if self._essay is not None:
            parts = _sentences(self._essay.stretch(self._start, size))
            places = [int(len(parts) * depth) for depth in self.depths]
        else:
            noise = self._task.haystack == "noise"
            parts = noise_lines(size) if noise else self._other_needles(size)
            places = [round(len(parts) * depth) for depth in self.depths]
            parts = [*parts, *noise_lines(filler)]
        for place, needle in sorted(zip(places, self.needles, strict=True), reverse=True):
            parts.insert(place, needle)
        return ("\n" if self._essay is None else " ").join(parts)

    def text(self, size: int, filler: int = 0) -> Text:
        """The prompt with ``size`` units of haystack."""
        one = self._task.num_queries * self._task.num_values == 1
        question, start = NIAH_ONE if one else NIAH_MANY
        kind = self._task.values[:-1] if one else self._task.values
        return Text(
            question.format(kind=kind, context=self._context(size, filler), query=self.query),
            start.format(kind=kind, query=self.query),
        )


def _sentences(words: list[str]) -> list[str]:
    """Words as sentences; the last one may lack its end."""
    sentences, current = [], []
    for word in words:
        current.append(word)
        if ends_sentence(word):
            sentences.append(" ".join(current))
            current = []
    return [*sentences, " ".join(current)] if current else sentences
