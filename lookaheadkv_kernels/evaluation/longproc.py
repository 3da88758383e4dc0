"""LongProc's HTML-to-TSV (Ye et al., 2025): tables from web pages, scored by their rows."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .longbench.metrics import normalised_answer
from .task import Sample, Task, encode_prompt, read_text

# Longest answer: twice the task's size, or one and a half times.
MAX_NEW_TOKENS = {"html_to_tsv_0.5k": 1024, "html_to_tsv_2k": 3072, "html_to_tsv_8k": 9216}
TASK_NAMES = tuple(MAX_NEW_TOKENS)


def extracted(answer: str) -> str:
    """The text between ```` ```tsv ```` and the last ```` ``` ````, or the whole answer."""
    block = re.search(r"```tsv([\s\S]*)```", answer)
    if block is not None:
        return block[1].strip()
    return (answer.split("```tsv")[1] if "```tsv" in answer else answer).strip()


def rows_of(text: str) -> list[tuple[str, ...]]:
    """Normalised rows below the header.

    A last row whose width differs from the header's is taken for text after the table and left
    out; any other such row counts as wrong in every cell.

    Raises:
        ValueError: there is no table.
    """
    try:
        table = list(csv.reader(text.strip().split("\n"), delimiter="\t"))
    except csv.Error as error:
        raise ValueError(f"no table: {error}") from error
    if len(table) < 2:
        raise ValueError("no table: no row below a header")
    header, *rows = table
    if len(rows[-1]) != len(header):
        rows = rows[:-1]
    if not rows:
        raise ValueError("no table: no whole row below a header")
    return [
        tuple(_cell(cell) for cell in (row if len(row) == len(header) else ["N/A"] * len(header)))
        for row in rows
    ]


def _cell(text: str) -> str:
    return normalised_answer(text).replace(" ", "")


def row_f1(answer: str, reference: str) -> float:
    """F1 of rows in any order, from the precision of the answer's rows and their recall."""
    try:
        predicted, true = rows_of(extracted(answer)), rows_of(reference)
    except ValueError:
        return 0.0
    if len(predicted[0]) != len(true[0]):
        return 0.0
    precision = sum(row in true for row in predicted) / len(predicted)
    recall = sum(row in predicted for row in true) / len(true)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


class HtmlToTsv(Task):
    """One size of the task. Prompts are as long as their pages.

    Args:
        name: one of ``TASK_NAMES``.
        tokenizer: of the model.
        folder: the published data: ``html_to_tsv/<name>.json``, ``html_to_tsv/prompts.yaml`` and
            the pages that the records name.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: an unknown task, or a bad file; the message names the place.
    """

    lengths = False

    def __init__(self, name: str, tokenizer: Any, folder: Path) -> None:
        import yaml

        if name not in TASK_NAMES:
            raise ValueError(f"unknown LongProc task {name!r}; there are {', '.join(TASK_NAMES)}")
        self.name = name
        self._tokenizer, self._folder = tokenizer, folder
        self._path = folder / "html_to_tsv" / f"{name}.json"
        try:
            self._records = json.loads(read_text(self._path))
        except json.JSONDecodeError as error:
            raise ValueError(f"{self._path}, line {error.lineno}: {error.msg}") from error
        if not isinstance(self._records, list) or not self._records:
            raise ValueError(f"{self._path} holds no list of records")
        for number, record in enumerate(self._records):
            for field in ("html_path", "gt"):
                if not isinstance(record, dict) or not isinstance(record.get(field), str):
                    raise ValueError(f"{self._path}: record {number} has no text {field!r}")
        prompts = folder / "html_to_tsv" / "prompts.yaml"
        try:
            self._template = yaml.safe_load(read_text(prompts))["USER_PROMPT"]
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise ValueError(f"{prompts}: no USER_PROMPT: {error}") from error
        self.num_samples = len(self._records)
        for number, record in enumerate(self._records):
            self._page_path(record, number)
            self._prompt(record, number, "")

    def source(self) -> dict[str, str]:
        """The file's checksum."""
        return {"sha256": hashlib.sha256(self._path.read_bytes()).hexdigest()}

    def _page_path(self, record: dict[str, Any], number: int) -> Path:
        # Records name pages from where the published scripts are run.
        for folder in (self._folder, self._folder / "html_to_tsv", self._folder.parent):
            path: Path = folder / record["html_path"]
            if path.is_file():
                return path
        raise FileNotFoundError(
            f"{self._path}: record {number}: no page {record['html_path']} below {self._folder}"
        )

    def _prompt(self, record: dict[str, Any], number: int, page: str) -> str:
        try:
            prompt: str = self._template.format(**{**record, "html_str": page})
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"{self._path}: record {number} does not fill USER_PROMPT: {error!r}"
            ) from error
        return prompt

    def sample(self, length: int, index: int) -> Sample:
        """Record ``index``, whatever the length."""
        record = self._records[index]
        prompt = self._prompt(record, index, read_text(self._page_path(record, index)))
        facts = {"id": record.get("task_id"), "topic": record.get("task_topic")}
        ids = encode_prompt(self._tokenizer, prompt)
        return Sample(ids, (record["gt"],), MAX_NEW_TOKENS[self.name], facts)

    def score(self, answers: Sequence[str], sample: Sample) -> float:
        """F1 of the rows."""
        return row_f1(answers[0], sample.references[0])
