"""Endless haystacks, as pieces of text that needles can be put between."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .draft import Desk
from .templates import NOISE
from .words import ADJECTIVES, NOUNS, every_fifth, words_of

KINDS = {"noise": 0.3, "prose": 0.45, "code": 0.15, "lines": 0.1}


def haystack(desk: Desk, kind: str) -> Iterator[str]:
    """Pieces of the kind of text asked for; each ends with what separates it from the next."""
    return {"noise": _noise, "prose": _prose, "code": _code, "lines": _lines}[kind](desk)


def _noise(desk: Desk) -> Iterator[str]:
    """Sentences over and over: one group as a benchmark repeats it, or several mixed."""
    ruler, *others = NOISE
    groups = (ruler, *every_fifth(desk.split, tuple(others)))
    if desk.chance(0.6):
        group = ruler if desk.chance(0.5) else desk.rng.choice(groups)
        separator = desk.rng.choice(("\n", " "))
        while True:
            yield group + separator
    sentences = [s.rstrip(".") + ". " for group in groups for s in group.split(". ")]
    while True:
        yield desk.rng.choice(sentences)


def _prose(desk: Desk) -> Iterator[str]:
    """Sentences of running text."""
    separator = desk.rng.choice(("\n", "\n\n", " "))
    while True:
        text = desk.document(desk.corpora.prose).text
        start = text.find("\n\n", desk.rng.randrange(len(text)))
        for paragraph in text[max(start, 0) :].split("\n\n"):
            sentences = re.split(r"(?<=[.!?;:]) (?=[A-Z\"'(])", paragraph.strip())
            if sentences == [""]:
                continue
            yield from (sentence + " " for sentence in sentences[:-1])
            yield sentences[-1] + separator


def _code(desk: Desk) -> Iterator[str]:
    """Lines of Python."""
    while True:
        text = desk.document(desk.corpora.code).text
        start = text.find("\n", desk.rng.randrange(len(text)))
        yield from (line + "\n" for line in text[start + 1 :].splitlines())


def _lines(desk: Desk) -> Iterator[str]:
    """Log or table lines of random words and numbers."""
    adjectives, nouns = words_of(desk.split, ADJECTIVES), words_of(desk.split, NOUNS)
    numbered = desk.chance(0.5)
    line = 0
    while True:
        line += 1
        words = f"{desk.rng.choice(adjectives)} {desk.rng.choice(nouns)}"
        prefix = f"line {line}: " if numbered else ""
        yield f"{prefix}{words} {desk.rng.randrange(10**5)}\n"
