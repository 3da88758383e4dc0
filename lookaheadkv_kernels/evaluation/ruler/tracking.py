"""Tracking and counting: RULER's vt, cwe and fwe."""

from __future__ import annotations

import math
import random
import string
from typing import Any

from .draft import Text, drawing
from .niah import noise_lines
from .templates import CWE, FWE, VT

NUM_HOPS = 4
EXAMPLE_TOKENS = 500  # of vt's worked example, as published
PUBLISHED_LENGTH = 4096  # below it examples and repetitions are smaller
NUM_COMMON = 10
WORD_LENGTH = 6
ALPHA = 2.0
ZETA_OF_ALPHA = math.pi**2 / 6


def _letters(rng: random.Random, length: int, count: int, alphabet: str) -> list[str]:
    """``count`` different random words."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices(alphabet, k=length))] = None
    return list(found)


class Chain:
    """One chain of assignments in noise, and its question."""

    def __init__(self, rng: random.Random, name_length: int) -> None:
        self.names = _letters(rng, name_length, NUM_HOPS + 1, string.ascii_uppercase)
        self.value = str(rng.randrange(10_000, 99_999))
        self.depths = sorted(rng.random() for _ in self.names)

    def text(self, num_sentences: int) -> Text:
        """The question about ``size`` sentences of noise."""
        statements = [f"VAR {self.names[0]} = {self.value}"]
        for before, name in zip(self.names, self.names[1:], strict=False):
            statements.append(f"VAR {name} = VAR {before} ")  # the space is the benchmark's
        lines = noise_lines(num_sentences)
        places = [round(depth * len(lines)) for depth in self.depths]
        for shift, (place, statement) in enumerate(zip(places, statements, strict=True)):
            lines.insert(place + shift, statement)
        question, start = VT
        return Text(
            question.format(context="\n".join(lines), query=self.value),
            start.format(count=len(self.names), query=self.value),
        )


class VtDraft:
    """Variable tracking behind one worked example; units are sentences of noise."""

    has_filler = False
    most: int | None = None
    least = 1
    tokens_a_unit = 5

    def __init__(self, rng: random.Random, length: int) -> None:
        self._example = Chain(rng, 3)
        # Published prompts are 4K or longer; in shorter ones the example must leave room.
        tokens = EXAMPLE_TOKENS if length >= PUBLISHED_LENGTH else length // 8
        question = self._example.text(max(1, (tokens - 150) // self.tokens_a_unit))
        answer = " ".join(self._example.names)
        self._shown = f"{question.user}{question.answer_start} {answer}\n\n"
        self._chain = Chain(rng, 5)
        self.references = tuple(self._chain.names)
        self.facts: dict[str, Any] = {"value": self._chain.value, "depths": self._chain.depths}

    def text(self, size: int, filler: int = 0) -> Text:
        """The prompt with ``size`` sentences of noise."""
        text = self._chain.text(size)
        return text._replace(user=self._shown + text.user)


class CweDraft:
    """Common words of a numbered list, behind one worked example; units are uncommon words."""

    has_filler = False
    least = 1

    def __init__(self, rng: random.Random, length: int, words: list[str]) -> None:
        published = length >= PUBLISHED_LENGTH
        self._common_repeats, self._uncommon_repeats = (30, 3) if published else (6, 1)
        num_shown, common, uncommon = (40, 10, 3) if published else (20, 3, 1)
        shown = rng.sample(words, num_shown)
        self._seed = rng.random()
        question, start = CWE
        text = question.format(context=self._list(shown, common, uncommon)) + start
        self._shown = f"{text} {_numbered(shown[:NUM_COMMON])}\n"
        self._words = rng.sample(words, len(words))
        self.references = tuple(self._words[:NUM_COMMON])
        self.facts: dict[str, Any] = {
            "repeats": [self._common_repeats, self._uncommon_repeats],
        }
        self.most: int | None = len(words) - NUM_COMMON
        self.tokens_a_unit = 5 * self._uncommon_repeats

    def _list(self, words: list[str], common: int, uncommon: int) -> str:
        listed = words[:NUM_COMMON] * common + words[NUM_COMMON:] * uncommon
        drawing(self._seed).shuffle(listed)
        return _numbered(listed)

    def text(self, size: int, filler: int = 0) -> Text:
        """The prompt with ``size`` uncommon words."""
        words = self._words[: NUM_COMMON + size]
        context = self._list(words, self._common_repeats, self._uncommon_repeats)
        question, start = CWE
        return Text(self._shown + question.format(context=context), start)


def _numbered(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))


class FweDraft:
    """Frequent coded words; rank k of the vocabulary comes size / (k^2 zeta(2)) times.

    One more unit can add several words; dots, which do not count, fill the space that is left.
    """

    has_filler = True
    most: int | None = None
    least = 60  # below it the ranks asked for are no more frequent than the next
    tokens_a_unit = 4

    def __init__(self, rng: random.Random, length: int) -> None:
        count = max(8, length // 50)
        self._vocabulary = _letters(rng, WORD_LENGTH, count, string.ascii_lowercase)
        self._vocabulary[0] = "..."  # the most frequent one is noise
        self._seed = rng.random()
        self.references = tuple(self._vocabulary[1:4])
        self.facts: dict[str, Any] = {}

    def text(self, size: int, filler: int = 0) -> Text:
        """The prompt with about ``size`` words, and ``filler`` more of the dots."""
        words = [
            word
            for rank, word in enumerate(self._vocabulary, start=1)
            for _ in range(int(size * rank**-ALPHA / ZETA_OF_ALPHA))
        ]
        words += ["..."] * filler
        drawing(self._seed).shuffle(words)
        question, start = FWE
        return Text(question.format(context=" ".join(words)), start)
