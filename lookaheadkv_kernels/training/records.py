"""Training data on disk: JSON lines, every one of them checked before any work begins."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Place(NamedTuple):
    """Where a record stands in its file."""

    line: int  # counted from 1, empty ones too
    start: int  # in bytes


class Checked(NamedTuple):
    """A file of records that has been read once from end to end."""

    places: list[Place]
    unanswered: int  # records without a response
    sha256: str


def check_file(path: Path, tokenizer: Any, vocabulary: int | None = None) -> Checked:
    """Read all records, and tell apart what can be trained on from what cannot.

    Args:
        path: of JSON lines.
        tokenizer: of the model.
        vocabulary: token ids that the model knows; None: those of the tokenizer.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no record, or there is none; the message has file, line and reason.
    """
    places, unanswered, position = [], 0, 0
    digest = hashlib.sha256()
    vocabulary = len(tokenizer) if vocabulary is None else vocabulary
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            digest.update(line)
            if line.strip():
                record = parse(line, path, number)
                try:
                    _check(record, tokenizer, vocabulary)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error
                places.append(Place(number, position))
                unanswered += not is_answered(record)
            position += len(line)
    if not places:
        raise ValueError(f"{path} holds no records")
    return Checked(places, unanswered, digest.hexdigest())


def records_of(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, in their order.

    Raises:
        ValueError: a line is no JSON object; the message has file, line and reason.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield parse(line, path, number)


def parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """One line as a JSON object.

    Raises:
        ValueError: it is none; the message has file, line and reason.
    """
    try:
        record = json.loads(line.decode().rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {number}: no JSON: {error.msg} at column {error.colno}"
        ) from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}, line {number}: no JSON object, but {_short(record)}")
    return record


def is_answered(record: dict[str, Any]) -> bool:
    """Whether a record brings its response."""
    return record.get("response_ids") is not None or record.get("response") is not None


def encode_record(record: dict[str, Any], tokenizer: Any) -> tuple[list[int], list[int] | None]:
    """Token ids of a record's prompt and response (None if it has none)."""
    if record.get("prompt_ids") is not None:
        prompt = list(record["prompt_ids"])
    elif isinstance(record["prompt"], str):
        prompt = list(tokenizer(record["prompt"]).input_ids)
    else:
        text = prompt_text(record["prompt"], tokenizer)
        prompt = list(tokenizer(text, add_special_tokens=False).input_ids)
    if record.get("response_ids") is not None:
        return prompt, list(record["response_ids"])
    if record.get("response") is None:
        return prompt, None
    return prompt, list(tokenizer(record["response"], add_special_tokens=False).input_ids)


def prompt_text(messages: list[dict[str, str]], tokenizer: Any) -> str:
    """A chat as text, up to where the answer begins.

    Raises:
        ValueError: the tokenizer's chat template refuses it, or there is no template.
    """
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, TypeError) as error:
        raise ValueError(f"'prompt': the chat template refuses it: {error}") from error
    return text


def _check(record: dict[str, Any], tokenizer: Any, vocabulary: int) -> None:
    """Refuse what no model can be trained on.

    Raises:
        ValueError: says what is wrong.
    """
    if record.get("prompt_ids") is not None:
        _check_ids("prompt_ids", record["prompt_ids"], vocabulary)
    elif isinstance(record.get("prompt"), list):
        _check_chat(record["prompt"])
        prompt_text(record["prompt"], tokenizer)
    elif record.get("prompt") is None:
        raise ValueError("no 'prompt' and no 'prompt_ids'")
    else:
        _check_text("'prompt'", record["prompt"], "a text or a list of chat messages")
    if record.get("response_ids") is not None:
        _check_ids("response_ids", record["response_ids"], vocabulary)
    elif record.get("response") is not None:
        _check_text("'response'", record["response"], "a text, or null")


def _check_chat(messages: list[Any]) -> None:
    if not messages:
        raise ValueError("'prompt' has no chat message")
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ValueError(f"'prompt' message {number} is no object, but {_short(message)}")
        # A call of a tool may come without words.
        for name in ("role",) if message.get("tool_calls") else ("role", "content"):
            _check_text(f"'prompt' message {number}: {name!r}", message.get(name), "a text")


def _check_text(what: str, value: Any, wanted: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{what} must be {wanted}, got {_short(value)}")
    if not value.strip():
        raise ValueError(f"{what} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} is no text: {error.reason} at {error.start}") from error


def _check_ids(name: str, ids: Any, vocabulary: int) -> None:
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise ValueError(f"{name!r} must be a list of whole numbers, got {_short(ids)}")
    if not ids:
        raise ValueError(f"{name!r} is empty")
    if not 0 <= min(ids) <= max(ids) < vocabulary:
        outside = next(token for token in ids if not 0 <= token < vocabulary)
        raise ValueError(f"{name!r}: token {outside} is not one of the {vocabulary} known ones")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
