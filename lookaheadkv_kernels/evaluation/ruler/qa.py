"""Questions among documents: RULER's qa_1 (SQuAD v2) and qa_2 (HotpotQA), from the user's file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..task import read_text
from .draft import Text
from .templates import DOCUMENT, QA


class Question(NamedTuple):
    """A question, its answers, and the numbers of its documents."""

    query: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]  # these answer it
    related: tuple[int, ...]  # distractors to take first


class Corpus(NamedTuple):
    """All questions and documents of a file."""

    questions: list[Question]
    documents: list[str]


def _read(path: Path, collect: Callable[[Any], Corpus]) -> Corpus:
    try:
        data = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error
    corpus = collect(data)
    if not corpus.questions:
        raise ValueError(f"{path} holds no question with an answer")
    return corpus


def read_squad(path: str | Path) -> Corpus:
    """SQuAD v2's JSON, e.g. ``dev-v2.0.json``; questions without an answer are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another form; the message names the place.
    """
    path = Path(path)

    def collect(data: Any) -> Corpus:
        places: dict[str, int] = {}
        questions: list[Question] = []
        articles = _field(path, "", data, "data", list)
        for a, article in enumerate(articles):
            where = f"data[{a}]"
            paragraphs = _field(path, where, article, "paragraphs", list)
            own = []
            for p, paragraph in enumerate(paragraphs):
                text = _field(path, f"{where}.paragraphs[{p}]", paragraph, "context", str)
                own.append(places.setdefault(text, len(places)))
            for p, paragraph in enumerate(paragraphs):
                inner = f"{where}.paragraphs[{p}]"
                for q, entry in enumerate(_field(path, inner, paragraph, "qas", list)):
                    spot = f"{inner}.qas[{q}]"
                    query = _field(path, spot, entry, "question", str)
                    if entry.get("is_impossible"):
                        continue
                    answers = tuple(
                        _field(path, f"{spot}.answers", answer, "text", str)
                        for answer in _field(path, spot, entry, "answers", list)
                    )
                    if answers:
                        others = tuple(sorted(set(own) - {own[p]}))
                        questions.append(Question(query, answers, (own[p],), others))
        return Corpus(questions, list(places))

    return _read(path, collect)


def read_hotpotqa(path: str | Path) -> Corpus:
    """HotpotQA's JSON, e.g. ``hotpot_dev_distractor_v1.json``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another form; the message names the place.
    """
    path = Path(path)

    def collect(data: Any) -> Corpus:
        if not isinstance(data, list):
            raise ValueError(f"{path}: not a list of questions")
        places: dict[str, int] = {}
        questions = []
        for number, entry in enumerate(data):
            where = f"[{number}]"
            query = _field(path, where, entry, "question", str)
            answer = _field(path, where, entry, "answer", str)
            own = []
            for item in _field(path, where, entry, "context", list):
                try:
                    title, sentences = item
                    text = f"{title}\n{''.join(sentences)}"
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{path}: {where}.context: {error}") from error
                own.append(places.setdefault(text, len(places)))
            questions.append(Question(query, (answer,), tuple(dict.fromkeys(own)), ()))
        return Corpus(questions, list(places))

    return _read(path, collect)


def _field(path: Path, where: str, record: Any, name: str, kind: type) -> Any:
    """A field of a record; raises ``ValueError`` naming file and place if it is missing."""
    if not isinstance(record, dict) or not isinstance(record.get(name), kind):
        raise ValueError(f"{path}: {where or 'the file'} has no {kind.__name__} {name!r}")
    return record[name]


class QaDraft:
    """One question; units are documents besides its own.

    Documents are long, so the beginning of one more fills the space that whole ones leave: its
    words are the filler.
    """

    has_filler = True
    least = 0
    tokens_a_unit = 150

    def __init__(self, rng: random.Random, corpus: Corpus, index: int, length: int) -> None:
        question = corpus.questions[index]
        self._documents, self._question = corpus.documents, question
        own = {*question.documents, *question.related}
        others = [
            number
            for number in rng.sample(
                range(len(corpus.documents)), min(len(corpus.documents), length // 8 + len(own))
            )
            if number not in own
        ]
        related = rng.sample(question.related, len(question.related))
        self._order = [*question.documents, *related, *others]
        self._rank = {number: rng.random() for number in self._order}
        self.references = question.answers
        self.facts: dict[str, Any] = {"question": question.query}
        # One document is left for the filler.
        self.most: int | None = max(0, len(self._order) - len(question.documents) - 1)

    def text(self, size: int, filler: int = 0) -> Text:
        """The prompt with ``size`` documents besides the question's own."""
        count = len(self._question.documents) + size
        texts = {number: self._documents[number] for number in self._order[:count]}
        if filler and count < len(self._order):
            number = self._order[count]
            texts[number] = " ".join(self._documents[number].split(" ")[:filler])
        shown = sorted(texts, key=lambda number: self._rank[number])
        context = "\n\n".join(
            DOCUMENT.format(number=place, text=texts[number])
            for place, number in enumerate(shown, start=1)
        )
        question, start = QA
        return Text(question.format(context=context, query=self._question.query), start)
