"""Samples by number: sample i of a seed and split is the same in every process."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...lookahead.files import sync
from .conversation import conversation
from .corpora import Corpora, find_texts
from .draft import Desk, Draft
from .passages import code, prose
from .retrieval import numbers, retrieval
from .words import SPLITS

KINDS = {"retrieval": 0.45, "prose": 0.25, "code": 0.2, "chat": 0.1}
MAKERS = {
    "retrieval": retrieval,
    "numbers": numbers,
    "prose": prose,
    "code": code,
    "chat": conversation,
}


class Sample(NamedTuple):
    """A prompt and its response as token ids; no response: the model answers by itself."""

    kind: str
    prompt_ids: list[int]
    response_ids: list[int] | None


class Recipe:
    """An endless sequence of samples.

    Prompts are ``min_tokens`` to ``max_tokens`` long, give or take a few percent: the logarithm
    of the length is spread evenly with ``skew`` 1, and leans to short prompts above it (a sample
    costs what its prompt costs; with 2 half of them are below the range's fourth root). ``kinds``
    maps kinds of samples to their shares. Samples depend on the texts: pass ``corpora`` where they
    must be the same on machines that differ in what is installed.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        seed: int,
        min_tokens: int = 256,
        max_tokens: int = 4096,
        skew: float = 2.0,
        split: str = "train",
        kinds: Mapping[str, float] | None = None,
        corpora: Corpora | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        if not 128 <= min_tokens <= max_tokens:
            raise ValueError(
                f"need 128 <= min_tokens <= max_tokens, got {min_tokens}, {max_tokens}"
            )
        kinds = dict(KINDS if kinds is None else kinds)
        if unknown := sorted(set(kinds) - set(MAKERS)):
            raise ValueError(f"unknown kinds {unknown}; there are {sorted(MAKERS)}")
        if not skew > 0:
            raise ValueError(f"skew must be > 0, got {skew}")
        self.tokenizer = tokenizer
        self.seed, self.split, self.kinds = seed, split, kinds
        self.min_tokens, self.max_tokens, self.skew = min_tokens, max_tokens, skew
        self.corpora = (find_texts() if corpora is None else corpora).of_split(split)

    def draft(self, index: int) -> Draft:
        """Sample ``index`` as text."""
        rng = random.Random(f"{self.seed}/{self.split}/{index}")
        spread = (self.max_tokens / self.min_tokens) ** (rng.random() ** self.skew)
        tokens = round(self.min_tokens * spread)
        kind = rng.choices(sorted(self.kinds), [self.kinds[k] for k in sorted(self.kinds)])[0]
        return MAKERS[kind](Desk(rng, self.tokenizer, self.corpora, self.split, tokens))

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index`` (0, 1, ...) as token ids."""
        if index < 0:
            raise IndexError(f"samples are numbered from 0, got {index}")
        draft = self.draft(index)
        response = None if draft.response is None else self._ids(draft.response)
        return Sample(draft.kind, self._ids(draft.prompt), response)

    def __iter__(self) -> Iterator[Sample]:
        index = 0
        while True:
            yield self[index]
            index += 1

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


def samples(
    tokenizer: Any,
    *,
    seed: int,
    min_tokens: int = 256,
    max_tokens: int = 4096,
    split: str = "train",
    kinds: Mapping[str, float] | None = None,
) -> Iterator[Sample]:
    """Samples 0, 1, 2 ... of a `Recipe`, without an end."""
    recipe = Recipe(
        tokenizer,
        seed=seed,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        split=split,
        kinds=kinds,
    )
    return iter(recipe)


def write_jsonl(path: Path, recipe: Recipe, count: int) -> None:
    """Samples 0 .. ``count`` - 1 as JSON lines ``{kind, prompt, response, answers}``.

    The prompt holds the chat template's special tokens already; a ``null`` response is left to
    the model.
    """
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        for draft in map(recipe.draft, range(count)):
            file.write(json.dumps(draft._asdict()) + "\n")
    sync(partial)
    os.replace(partial, path)
