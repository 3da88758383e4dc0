"""The material of RULER's haystacks and keys: an essay, and lists of words."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ...training.recipe.corpora import find_texts
from ...training.recipe.words import ADJECTIVES, NAMES, NOUNS, words_of
from ..task import read_text

LEAST_ESSAY_WORDS = 1000
LONGEST_WORD = 30  # characters


class Essay:
    """Running text as words; a haystack is a stretch of it from the start of a sentence.

    Args:
        name: its source.
        text: of at least ``LEAST_ESSAY_WORDS`` words and two sentences.

    Attributes:
        words: of the text, without the longest.
        starts: numbers of the words that begin a sentence.
        sha256: of the text.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        # Addresses and rules of dashes are longer than a length may miss its target by.
        self.words = [word for word in text.split() if len(word) <= LONGEST_WORD]
        self.starts = [0] + [
            number
            for number, word in enumerate(self.words[:-1], start=1)
            if ends_sentence(word) and self.words[number][0].isupper()
        ]
        if len(self.words) < LEAST_ESSAY_WORDS or len(self.starts) < 2:
            raise ValueError(
                f"{name} is no haystack: {len(self.words)} words in {len(self.starts)} sentences; "
                f"at least {LEAST_ESSAY_WORDS} words in sentences are needed"
            )
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()

    def stretch(self, start: int, count: int) -> list[str]:
        """``count`` words starting at ``start``; the text repeats if it ends."""
        words = self.words[start : start + count]
        while len(words) < count:
            words += self.words[: count - len(words)]
        return words


def ends_sentence(word: str) -> bool:
    """Whether a sentence may end with this word."""
    return word.rstrip("\"')").endswith((".", "!", "?"))


@cache
def builtin_essay() -> Essay:
    """Prose installed on this machine that training never sees; it differs between machines.

    Raises:
        ValueError: there is too little.
    """
    documents = find_texts().of_split("heldout").prose
    return Essay("installed texts", "\n\n".join(document.text for document in documents))


def essay_file(path: str | Path) -> Essay:
    """A text file that the user names.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not UTF-8, or too short.
    """
    return Essay(str(path), read_text(path))


class WordLists(NamedTuple):
    """Words for keys (adjective-noun) and for lists of words."""

    name: str
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    all_words: tuple[str, ...]  # all different


@cache
def builtin_words() -> WordLists:
    """The package's own lists; keys are from the fifth that training never uses."""
    both = {*ADJECTIVES, *NOUNS, *(name.lower() for name in NAMES)}
    return WordLists(
        "builtin",
        words_of("heldout", ADJECTIVES),
        words_of("heldout", NOUNS),
        tuple(sorted(both)),
    )


@cache
def wonderwords() -> WordLists:
    """The lists of the ``wonderwords`` package, which the published generator uses.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    from importlib.resources import files

    try:
        assets = files("wonderwords") / "assets"
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("--words wonderwords: pip install wonderwords") from error
    adjectives, nouns, verbs = (
        tuple(line.strip() for line in (assets / f"{kind}list.txt").read_text().splitlines())
        for kind in ("adjective", "noun", "verb")
    )
    everything = {word for word in (*adjectives, *nouns, *verbs) if word}
    return WordLists("wonderwords", adjectives, nouns, tuple(sorted(everything)))


def more_words(words: WordLists, essay: Essay) -> list[str]:
    """The list's words, followed by further words from the essay where the list is too short."""
    known = set(words.all_words)
    found = {word.lower().strip(".,;:!?\"'()") for word in essay.words}
    others = sorted(w for w in found - known if re.fullmatch(r"[a-z]{4,}", w))
    return [*words.all_words, *others]
