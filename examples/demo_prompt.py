"""A long prompt with needles: English prose every CPython carries, and facts hidden in it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pydoc_data.topics import topics

# Facts of different kinds: so small a model mixes up several of one kind, even with a full cache.
FACTS = {
    "favourite fruit of the queen": ("mango", "papaya", "cherry", "melon", "apricot", "coconut"),
    "name of the captain's parrot": ("Oscar", "Ruby", "Felix", "Hugo", "Stella", "Bruno"),
    "home town of the singer": ("Lisbon", "Oslo", "Cairo", "Dublin", "Havana", "Nairobi"),
    "number of the hotel room": ("417", "862", "593", "728", "346", "951"),
    "colour of the old piano": ("purple", "turquoise", "orange", "crimson", "silver", "pink"),
    "month of the wedding": ("January", "April", "June", "August", "October", "December"),
}
MIN_NEEDLES = 4  # however few are asked for
INSTRUCTION = "Read the text below. Some facts that do not belong are hidden in it. Remember them."


@dataclass(frozen=True)
class Needle:
    """A fact that is stated once, somewhere in the text."""

    subject: str
    value: str
    depth: float  # 0 = start of the text, 1 = its end

    @property
    def sentence(self) -> str:
        """The fact as the text states it."""
        return f"{self.answer_start} {self.value}."

    @property
    def question(self) -> str:
        """What is asked about it at the end of the prompt."""
        return f"What is the {self.subject}?"

    @property
    def answer_start(self) -> str:
        """The answer up to the fact, which is given, much as in the RULER benchmark."""
        return f"The {self.subject} is"

    def answered_by(self, answer: str) -> bool:
        """Whether ``answer`` states the fact, as a word of its own in any case."""
        return re.search(rf"\b{re.escape(self.value)}\b", answer, re.IGNORECASE) is not None


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

    All is drawn from ``seed``. ``ValueError`` for more questions than there are facts, or for a
    text longer than the prose at hand.
    """
    if not 1 <= num_questions <= len(FACTS):
        raise ValueError(f"questions must be in 1..{len(FACTS)}, got {num_questions}")
    rng = random.Random(seed)
    subjects = rng.sample(sorted(FACTS), max(MIN_NEEDLES, num_questions))
    needles = [
        Needle(subject, rng.choice(FACTS[subject]), (i + 0.5) / len(subjects))
        for i, subject in enumerate(subjects)
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
