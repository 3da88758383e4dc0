"""LongBench's tasks."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..task import Sample, Task, encode_prompt, read_json_lines
from .metrics import METRICS
from .prompts import FIRST_LINE, MAX_NEW_TOKENS, PROMPTS, WITHOUT_CHAT

TASK_NAMES = tuple(PROMPTS)
FIELDS = {"input": str, "context": str, "answers": list}
ARCHIVE = "data.zip"


def read_records(path: Path | zipfile.Path) -> list[dict[str, Any]]:
    """The records of a published file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a line is no record; the message names file and line.
    """
    records = read_json_lines(path)
    for number, record in records.items():
        for name, kind in FIELDS.items():
            if not isinstance(record.get(name), kind):
                raise ValueError(f"{path}, line {number}: no {kind.__name__} {name!r}")
        if not record["answers"]:
            raise ValueError(f"{path}, line {number}: no answer")
    return list(records.values())


def find_file(folder: Path, name: str) -> Path | zipfile.Path:
    """``name`` in the folder, in its ``data``, or in the published archive.

    Raises:
        FileNotFoundError: it is in none of these places.
        ValueError: the archive is damaged.
    """
    for path in (folder / name, folder / "data" / name):
        if path.is_file():
            return path
    if (folder / ARCHIVE).is_file():
        try:
            inside = zipfile.Path(folder / ARCHIVE, f"data/{name}")
        except zipfile.BadZipFile as error:
            raise ValueError(f"{folder / ARCHIVE} is damaged: {error}") from error
        if inside.is_file():
            return inside
    raise FileNotFoundError(
        f"no {name} in {folder}, in {folder / 'data'}, nor in an archive {folder / ARCHIVE}"
    )


class LongBenchTask(Task):
    """One of the sixteen English tasks.

    Prompts that do not fit ``length``, with the chat template and room for the answer, lose their
    middle.

    Args:
        name: one of ``TASK_NAMES``.
        tokenizer: of the model.
        folder: with the published ``<name>.jsonl``, or the archive that holds it.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: an unknown task, or a bad line.
    """

    def __init__(self, name: str, tokenizer: Any, folder: Path) -> None:
        if name not in TASK_NAMES:
            raise ValueError(f"unknown LongBench task {name!r}; there are {', '.join(TASK_NAMES)}")
        self.name = name
        self._tokenizer = tokenizer
        self._path = find_file(folder, f"{name}.jsonl")
        self._records = read_records(self._path)
        self.num_samples = len(self._records)

    def source(self) -> dict[str, str]:
        """The file's checksum."""
        return {"sha256": hashlib.sha256(self._path.read_bytes()).hexdigest()}

    def sample(self, length: int, index: int) -> Sample:
        """Record ``index``.

        Raises:
            ValueError: ``length`` has no room for an answer.
        """
        record = self._records[index]
        prompt = PROMPTS[self.name].format(context=record["context"], input=record["input"])
        chat = self.name not in WITHOUT_CHAT
        around = len(encode_prompt(self._tokenizer, "", chat=chat))
        room = length - MAX_NEW_TOKENS[self.name] - around
        if room < 2:
            raise ValueError(
                f"{self.name}: length must be at least {length - room + 2}, got {length}"
            )
        ids = list(self._tokenizer(prompt, add_special_tokens=False).input_ids)
        if len(ids) > room:
            half = room // 2
            prompt = "".join(
                self._tokenizer.decode(part, skip_special_tokens=True)
                for part in (ids[:half], ids[-half:])
            )
        facts = {
            "id": record.get("_id"),
            "classes": record.get("all_classes") or [],
            "tokens_published": len(ids),
        }
        return Sample(
            encode_prompt(self._tokenizer, prompt, chat=chat),
            tuple(record["answers"]),
            MAX_NEW_TOKENS[self.name],
            facts,
        )

    def score(self, answers: Sequence[str], sample: Sample) -> float:
        """The best of the task's metric over the references."""
        answer = answers[0]
        if self.name in FIRST_LINE:
            answer = answer.lstrip("\n").split("\n")[0]
        metric, classes = METRICS[self.name], sample.facts["classes"]
        return max(metric(answer, reference, classes) for reference in sample.references)
