"""MT-Bench (Zheng et al., 2023): two turns, rated from 1 to 10 by a judge."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .judge import Judge
from .task import Sample, Task, encode_prompt, read_json_lines

TASK_NAME = "mtbench"
QUESTIONS = "question.jsonl"
REFERENCES = "reference_answer/gpt-4.jsonl"
WITH_REFERENCE = ("math", "reasoning", "coding")

# The judge's prompts, as published (lm-sys/FastChat, Apache-2.0).
_ROLE = (
    "Please act as an impartial judge and evaluate the quality of the response provided by an AI "
    "assistant to the user question displayed below. "
)
_QUALITY = (
    "Your evaluation should consider factors such as the helpfulness, relevance, accuracy, depth, "
    "creativity, and level of detail of the response. "
)
_CORRECTNESS = (
    "Your evaluation should consider correctness and helpfulness. You will be given a reference "
    "answer and the assistant's answer. "
)
_SECOND = (
    "You evaluation should focus on the assistant's answer to the second user question. "  # (sic)
)
_EXPLAIN = "Begin your evaluation by providing a short explanation. "
_COMPARE = (
    "Begin your evaluation by comparing the assistant's answer with the reference answer. "
    "Identify and correct any mistakes. "
)
_RATE = (
    "Be as objective as possible. After providing your explanation, you must rate the response on "
    'a scale of 1 to 10 by strictly following this format: "[[rating]]", for example: "Rating: '
    '[[5]]".\n\n'
)


def judge_messages(
    questions: Sequence[str], answers: Sequence[str], references: Sequence[str]
) -> list[dict[str, str]]:
    """What the judge is asked about the last of one or two answers."""
    known = len(references) >= len(answers)
    task = _ROLE + (_CORRECTNESS if known else _QUALITY)
    how = (_COMPARE if known else _EXPLAIN) + _RATE
    if len(answers) == 1:
        reference = (
            f"[The Start of Reference Answer]\n{references[0]}\n[The End of Reference Answer]\n\n"
            if known
            else ""
        )
        user = (
            f"[Instruction]\n{task}{how}[Question]\n{questions[0]}\n\n{reference}"
            f"[The Start of Assistant's Answer]\n{answers[0]}\n[The End of Assistant's Answer]"
        )
        return [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": user},
        ]
    talk = _conversation("Assistant A's Conversation with User", "Assistant A", questions, answers)
    if known:
        reference = _conversation("Reference Answer", "Reference answer", questions, references)
        talk = f"{reference}\n\n\n{talk}"
    return [
        {"role": "system", "content": task + _SECOND + how},
        {"role": "user", "content": talk},
    ]


def _conversation(
    title: str, speaker: str, questions: Sequence[str], answers: Sequence[str]
) -> str:
    turns = "".join(
        f"### User:\n{question}\n\n### {speaker}:\n{answer}\n\n"
        for question, answer in zip(questions, answers, strict=False)
    )
    return f"<|The Start of {title}|>\n\n{turns}<|The End of {title}|>"


def rating(verdict: str) -> float | None:
    """The rating in a verdict; None if it has none from 1 to 10."""
    for pattern in (r"\[\[(\d+\.?\d*)\]\]", r"\[(\d+\.?\d*)\]"):
        if found := re.search(pattern, verdict):
            value = float(found[1])
            if 1 <= value <= 10:
                return value
    return None


class MtBench(Task):
    """The questions, and a judge of the answers.

    Each turn is a prompt of its own, the conversation so far, and is evicted to the budget. Scores
    are the mean rating of both turns over 10.

    Args:
        tokenizer: of the model, with a chat template.
        folder: with the published ``question.jsonl``, and if need be
            ``reference_answer/gpt-4.jsonl``.
        judge: rates the answers.
        max_new_tokens: longest answer of a turn.

    Raises:
        FileNotFoundError: there are no questions.
        ValueError: a bad line; the message names file and line.
    """

    name = TASK_NAME
    lengths = False

    def __init__(
        self, tokenizer: Any, folder: Path, judge: Judge, *, max_new_tokens: int = 1024
    ) -> None:
        self._tokenizer, self._judge, self._max = tokenizer, judge, max_new_tokens
        self._path = folder / QUESTIONS
        self._questions = read_json_lines(self._path)
        for number, question in self._questions.items():
            turns = question.get("turns")
            if (
                not isinstance(turns, list)
                or not turns
                or not all(isinstance(t, str) for t in turns)
            ):
                raise ValueError(f"{self._path}, line {number}: no list of texts 'turns'")
        self._references: dict[Any, list[str]] = {}
        references = folder / REFERENCES
        if references.is_file():
            for number, record in read_json_lines(references).items():
                try:
                    self._references[record["question_id"]] = record["choices"][0]["turns"]
                except (KeyError, IndexError, TypeError) as error:
                    raise ValueError(f"{references}, line {number}: {error!r}") from error
        self._order = list(self._questions.values())
        self.num_samples = len(self._order)

    def source(self) -> dict[str, str]:
        """The questions' checksum, and who judges."""
        digest = hashlib.sha256(self._path.read_bytes()).hexdigest()
        judge = str(getattr(self._judge, "model", type(self._judge).__name__))
        return {"sha256": digest, "judge": judge, "max_new_tokens": str(self._max)}

    def sample(self, length: int, index: int) -> Sample:
        """Question ``index``, whatever the length; its first turn is the prompt."""
        question = self._order[index]
        references: list[str] = []
        if question.get("category") in WITH_REFERENCE:
            known = self._references.get(question.get("question_id"))
            references = list(known or question.get("reference") or [])
        facts = {
            "id": question.get("question_id"),
            "category": question.get("category"),
            "turns": question["turns"],
        }
        ids = encode_prompt(self._tokenizer, question["turns"][0])
        return Sample(ids, tuple(references), self._max, facts)

    def follow_up(self, sample: Sample, answers: Sequence[str]) -> list[int] | None:
        """The conversation so far and the next question."""
        turns = sample.facts["turns"]
        if len(answers) == len(turns):
            return None
        chat: list[dict[str, str]] = []
        for turn, answer in zip(turns, answers, strict=False):
            chat += [
                {"role": "user", "content": turn},
                {"role": "assistant", "content": answer},
            ]
        chat.append({"role": "user", "content": turns[len(answers)]})
        return encode_prompt(self._tokenizer, chat)

    def score(self, answers: Sequence[str], sample: Sample) -> float | None:
        """Mean rating of the turns, over 10; turns that the judge does not rate are left out."""
        verdicts = [
            self._judge(judge_messages(sample.facts["turns"], answers[:turn], sample.references))
            for turn in range(1, len(answers) + 1)
        ]
        ratings = [value for verdict in verdicts if (value := rating(verdict)) is not None]
        return sum(ratings) / len(ratings) / 10 if ratings else None
