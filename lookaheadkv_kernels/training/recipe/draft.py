"""A sample as text, and the random numbers, texts and tokenizer that it is made from."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from .corpora import Corpora, Document
from .templates import SYSTEM_PROMPTS
from .words import every_fifth

# Default chats: the template adds its own system turn where none is given.
DEFAULT_SYSTEM_SHARE = 0.8
BATCH = 64


class Draft(NamedTuple):
    """A sample as text. ``answers`` are the strings a right answer holds (none: open question)."""

    kind: str
    prompt: str
    response: str | None
    answers: tuple[str, ...] = ()


class Desk:
    """One sample's random numbers, tokenizer, texts and length."""

    def __init__(
        self, rng: random.Random, tokenizer: Any, corpora: Corpora, split: str, tokens: int
    ) -> None:
        self.rng = rng
        self.tokenizer = tokenizer
        self.corpora = corpora  # of this split only
        self.split = split
        self.tokens = tokens  # the prompt's length

    def ids(self, text: str) -> list[int]:
        """Token ids of a text; special tokens it spells count as such, none are added."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return str(self.tokenizer.decode(ids))

    def chance(self, share: float) -> bool:
        """True in ``share`` of the samples."""
        return self.rng.random() < share

    def pick(self, weights: Mapping[str, float]) -> str:
        """A key, drawn by weight."""
        return self.rng.choices(list(weights), list(weights.values()))[0]

    def document(self, documents: Sequence[Document]) -> Document:
        """A document, drawn by length, so that every passage is equally likely."""
        return self.rng.choices(documents, [len(d.text) for d in documents])[0]

    def chat(self, messages: Sequence[tuple[str, str]], answer_start: str = "") -> str:
        """The chat as the model's template spells it, ready for the assistant's turn."""
        turns = [{"role": role, "content": content} for role, content in messages]
        systems = every_fifth(self.split, SYSTEM_PROMPTS)
        if not self.chance(DEFAULT_SYSTEM_SHARE):
            turns.insert(0, {"role": "system", "content": self.rng.choice(systems)})
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return str(text) + answer_start

    @property
    def end(self) -> str:
        """What ends an assistant's turn."""
        return str(self.tokenizer.eos_token)

    def window(self, documents: Sequence[Document], tokens: int) -> list[int]:
        """``tokens`` ids of running text from a random line on; further documents if one ends."""
        ids: list[int] = []
        while len(ids) < tokens:
            text = self.document(documents).text
            start = text.find("\n", self.rng.randrange(len(text))) + 1  # 0: no line break follows
            ids += self.ids(text[start : start + 8 * (tokens - len(ids))].strip("\n") + "\n\n")
        return ids[:tokens]

    def fill(self, units: Iterator[str], tokens: int) -> list[str]:
        """Pieces of text that are ``tokens`` long together; the last one may be cut short."""
        kept: list[str] = []
        while tokens > 0:
            batch = list(islice(units, BATCH))
            ids = self.ids("".join(batch))
            if len(ids) <= tokens:
                kept += batch
                tokens -= len(ids)
                continue
            room = len(self.text(ids[:tokens]))
            for unit in batch:
                if len(unit) > room:
                    part = unit[:room].rpartition(" ")[0]
                    separator = unit[len(unit.rstrip()) :]
                    return [*kept, part + separator] if part.strip() else kept
                kept.append(unit)
                room -= len(unit)
        return kept

    def cut(self, ids: Sequence[int], at: int) -> int:
        """The last place up to ``at`` where a word starts: text cut there tokenizes the same."""
        while at > 1 and not self.text(ids[at : at + 1])[:1].isspace():
            at -= 1
        return at
