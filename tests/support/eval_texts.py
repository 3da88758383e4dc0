"""A cheap tokenizer and small texts for tests of the benchmarks."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any, NamedTuple

PIECE = re.compile(r" ?[A-Za-z]{1,6}| ?\d{1,3}|\s|[^\w\s]|_")


class Encoded(NamedTuple):
    """What a tokenizer returns."""

    input_ids: list[int]


class PieceTokenizer:
    """Pieces of up to four letters, one token each; no vocabulary to load."""

    chat_template = "yes"

    def __init__(self) -> None:
        self.pieces: dict[str, int] = {}

    def __call__(self, text: str, add_special_tokens: bool = True) -> Encoded:
        return Encoded([self.pieces.setdefault(p, len(self.pieces)) for p in PIECE.findall(text)])

    def decode(self, ids: Any, **options: Any) -> str:
        names = list(self.pieces)
        return "".join(names[i] for i in ids)

    def apply_chat_template(
        self, chat: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        turns = "".join(f"[{turn['role']}]{turn['content']}[/]" for turn in chat)
        return turns + "[assistant]"


def prose(words: int, seed: int = 0) -> str:
    """Sentences of made-up words."""
    rng = random.Random(seed)
    parts = []
    while len(parts) < words:
        sentence = [
            "".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(2, 9)))
            for _ in range(rng.randint(4, 14))
        ]
        parts += [sentence[0].capitalize(), *sentence[1:-1], sentence[-1] + "."]
    return " ".join(parts)


def write_squad(path: Path, articles: int = 6) -> Path:
    """Articles of three paragraphs with two questions each, one of them without an answer."""
    data = []
    for a in range(articles):
        paragraphs = []
        for p in range(3):
            context = f"Fact {a} {p} is answer{a}x{p}. " + prose(60, 100 * a + p)
            qas = [
                {
                    "question": f"What is fact {a} {p}?",
                    "is_impossible": False,
                    "answers": [{"text": f"answer{a}x{p}"}, {"text": f"Answer{a}x{p}."}],
                },
                {"question": "What is it not?", "is_impossible": True, "answers": []},
            ]
            paragraphs.append({"context": context, "qas": qas})
        data.append({"title": f"t{a}", "paragraphs": paragraphs})
    path.write_text(json.dumps({"version": "v2.0", "data": data}))
    return path


def write_hotpotqa(path: Path, questions: int = 12) -> Path:
    """Questions of two documents each."""
    data = []
    for q in range(questions):
        context = [
            [f"Title {q} {d}", [f"Thing {q} {d}. ", prose(30, 10 * q + d)]] for d in range(2)
        ]
        data.append(
            {"question": f"Which thing is {q}?", "answer": f"Thing {q}", "context": context}
        )
    path.write_text(json.dumps(data))
    return path
