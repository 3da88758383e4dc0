"""The interface of a benchmark: numbered samples, and a score for their answers."""

from __future__ import annotations

import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Sample(NamedTuple):
    """A prompt and the references for its answer."""

    prompt_ids: list[int]
    references: tuple[str, ...]
    max_new_tokens: int
    facts: dict[str, Any]  # what else scoring needs, and what helps to look at a failure


class Task(ABC):
    """One task of a benchmark.

    Attributes:
        name: name used on the command line and in result files.
        num_samples: how many samples there are; None: any number.
        lengths: whether ``length`` matters; otherwise prompts have a length of their own.
    """

    name: str
    num_samples: int | None = None
    lengths: bool = True

    @abstractmethod
    def sample(self, length: int, index: int) -> Sample:
        """Sample ``index`` at ``length`` tokens, room for the answer included.

        Raises:
            ValueError: ``length`` has no room for it.
        """

    @abstractmethod
    def score(self, answers: Sequence[str], sample: Sample) -> float | None:
        """Score of the answers of all turns, from 0 to 1; None if they cannot be scored."""

    def follow_up(self, sample: Sample, answers: Sequence[str]) -> list[int] | None:
        """Token ids of the next turn's prompt after these answers; None if there is none."""
        return None

    def source(self) -> dict[str, str]:
        """What the samples are made from, e.g. the checksums of its files."""
        return {}


def encode_prompt(
    tokenizer: Any,
    user: str | Sequence[dict[str, str]],
    answer_start: str = "",
    *,
    chat: bool = True,
) -> list[int]:
    """Token ids of a user's turn (or a whole chat) and of the first words of the answer.

    Models without a chat template, and all with ``chat=False``, continue the plain text.
    """
    turns = [{"role": "user", "content": user}] if isinstance(user, str) else list(user)
    if chat and getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text + answer_start, add_special_tokens=False).input_ids)
    text = "\n\n".join(message["content"] for message in turns)
    return list(tokenizer(text + answer_start).input_ids)


def read_text(path: str | Path | zipfile.Path) -> str:
    """The text of a UTF-8 file; raises ``ValueError`` naming file and line if it is not UTF-8."""
    raw = (Path(path) if isinstance(path, str) else path).read_bytes()
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 ({error.reason})") from error


def read_json_lines(path: str | Path | zipfile.Path) -> dict[int, dict[str, Any]]:
    """Records of a JSON-lines file by line number; empty lines are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no JSON object, or there is none; the message names file and line.
    """
    records = {}
    # Not splitlines: it would also split at line ends that JSON strings may contain.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: {error.msg}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: no JSON object")
        records[number] = record
    if not records:
        raise ValueError(f"{path} holds no records")
    return records
