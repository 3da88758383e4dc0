"""A long prompt with needles: English prose every CPython carries, and facts hidden in it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pydoc_data.topics import topics

CITIES = (
    "Paris Tokyo Cairo Lima Oslo Sydney Toronto Berlin Madrid Nairobi Seoul Dublin Havana Athens"
).split()
MIN_NEEDLES = 4  # so that the answer is never simply the only number of the text
INSTRUCTION = "Read the text below. Some special magic numbers are hidden in it. Remember them."


@dataclass(frozen=True)
class Needle:
    """A fact that is stated once, somewhere in the text."""

    city: str
    number: str  # seven digits
    depth: float  # 0 = start of the text, 1 = its end

    @property
    def sentence(self) -> str:
        """The fact as the text states it."""
        return f"The special magic number for {self.city} is: {self.number}."

    @property
    def question(self) -> str:
        """What is asked about it at the end of the prompt."""
        return f"What is the special magic number for {self.city} mentioned in the text above?"

    @property
    def answer_start(self) -> str:
        """How the answer begins, as in the RULER benchmark: given, so that only the fact is left."""
        return f"The special magic number for {self.city} mentioned in the text above is:"

    def answered_by(self, answer: str) -> bool:
        """Whether ``answer`` states the number, however its digits are grouped."""
        return self.number in re.sub(r"(?<=\d)[ ,.](?=\d)", "", answer)


@dataclass(frozen=True)
class Haystack:
    """One text and the needles that are asked for, in the order of asking."""

    text: str
    asked: tuple[Needle, ...]

    def user_message(self, needle: Needle) -> str:
        """The user's turn of the chat: the whole text, then one question."""
        return f"{INSTRUCTION}\n\n{self.text}\n\n{needle.question}"


def prose_paragraphs() -> list[str]:
    """The paragraphs of Python's language reference that are plain sentences, each on one line."""
    found: dict[str, None] = {}
    for topic in topics.values():
        for block in re.split(r"\n\s*\n", topic):
            if re.fullmatch(r"[A-Z](?:.|\n(?! ))*[a-z]\.", block) and len(block) >= 120:
                found[" ".join(block.split())] = None
    return list(found)


def build_haystack(
    seed: int, num_tokens: int, num_questions: int, count_tokens: Callable[[str], int]
) -> Haystack:
    """Prose of at least ``num_tokens`` tokens, needles at evenly spread depths, and the questions.

    Everything but the text itself is drawn from ``seed``. ``ValueError`` for more questions than
    there are cities, or a text longer than the prose at hand.
    """
    if not 1 <= num_questions <= len(CITIES):
        raise ValueError(f"questions must be in 1..{len(CITIES)}, got {num_questions}")
    rng = random.Random(seed)
    num_needles = max(MIN_NEEDLES, num_questions)
    needles = [
        Needle(city, str(rng.randrange(10**6, 10**7)), (i + 0.5) / num_needles)
        for i, city in enumerate(rng.sample(CITIES, num_needles))
    ]
    missing = num_tokens - count_tokens(" ".join(needle.sentence for needle in needles))

    supply = prose_paragraphs()
    rng.shuffle(supply)
    paragraphs: list[str] = []
    while missing > 0:
        if not supply:
            raise ValueError(f"not enough prose for a text of {num_tokens} tokens")
        paragraphs.append(supply.pop())
        missing -= count_tokens(paragraphs[-1])

    total = len(paragraphs)
    for needle in reversed(needles):  # from the back, so that earlier places stay where they are
        paragraphs.insert(int(needle.depth * total), needle.sentence)
    return Haystack("\n\n".join(paragraphs), tuple(rng.sample(needles, num_questions)))
