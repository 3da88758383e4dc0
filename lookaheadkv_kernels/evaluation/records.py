"""A result folder's predictions: JSON lines that survive a kill, from any number of processes.

Every prediction is one line with a key of its own. Those that were made together are written
together, and synced before the next ones are begun. What a killed process left of them
is cut when the folder is opened again: they are made anew, again together, because in 16 bits an
answer may depend on what else is in its batch.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..lookahead.files import write_atomically

MERGED = "predictions.jsonl"
PART = "part"  # [i, n]: a record's place among the n that were written together
KEY_FIELDS = ("task", "length", "sample", "policy", "budget")


class Shard(NamedTuple):
    """One process's share of the samples."""

    rank: int = 0
    world: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse ``i/n``, e.g. ``0/4``.

        Raises:
            ValueError: it is not of that form, or i is not below n.
        """
        try:
            rank, world = (int(part) for part in text.split("/"))
        except ValueError as error:
            raise ValueError(f"shard must be i/n, e.g. 0/4, got {text!r}") from error
        if not 0 <= rank < world:
            raise ValueError(f"shard must be i/n with 0 <= i < n, got {text!r}")
        return cls(rank, world)

    @property
    def file_name(self) -> str:
        """Name of the file that this process writes."""
        return MERGED if self.world == 1 else f"predictions-{self.rank}-of-{self.world}.jsonl"


class Key(NamedTuple):
    """Identifies a prediction."""

    task: str
    length: int
    sample: int
    policy: str
    budget: int | float | None  # None: the full cache


def key_of(record: dict[str, Any]) -> Key:
    """A record's key."""
    return Key(*(record[name] for name in KEY_FIELDS))


def sort_key(key: Key) -> tuple[Any, ...]:
    """Keys in the order of the result files; the full cache before all budgets."""
    budget = (-1, 0.0) if key.budget is None else (int(isinstance(key.budget, int)), key.budget)
    return key.task, key.length, key.policy, budget, key.sample


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a lock on the folder: one process at a time is within the block."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_predictions(folder: Path) -> dict[Key, dict[str, Any]]:
    """All whole predictions of a folder, each once, in the order of their keys.

    Raises:
        ValueError: a line that is whole but no prediction; the message names file and line.
    """
    found: dict[Key, dict[str, Any]] = {}
    for path in sorted(folder.glob("predictions*.jsonl")):
        whole = whole_samples(path.read_bytes())
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                found.setdefault(key_of(record), record)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: no prediction: {error!r}") from error
    return {key: found[key] for key in sorted(found, key=sort_key)}


def whole_samples(content: bytes) -> bytes:
    """A file without a line, and without a sample's records, that a kill has cut short."""
    lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
    if lines:
        try:
            place, count = json.loads(lines[-1]).get(PART, (0, 1))
        except (ValueError, AttributeError, TypeError):
            place, count = 0, 1  # no record: whoever reads it will say so
        if place + 1 < count:
            del lines[len(lines) - place - 1 :]
    return b"".join(lines)


def merge(folder: Path, records: dict[Key, dict[str, Any]]) -> None:
    """Merge all predictions into one file and delete those of single processes."""
    # In the order of the keys; what was written together no longer stands together.
    lines = [
        json.dumps({name: value for name, value in record.items() if name != PART}) + "\n"
        for record in records.values()
    ]
    write_atomically(folder / MERGED, "".join(lines).encode())
    for path in folder.glob("predictions-*.jsonl"):
        path.unlink()


class Writer:
    """Appends predictions to a process's own file.

    Raises:
        ValueError: another process writes to it.
    """

    def __init__(self, folder: Path, shard: Shard) -> None:
        path = folder / shard.file_name
        self._file: IO[bytes] = open(path, "ab+")  # noqa: SIM115 (closed by close)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise ValueError(
                f"{path}: another process writes to it; give each its own --shard i/n"
            ) from error
        self._file.seek(0)
        self._file.truncate(len(whole_samples(self._file.read())))

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Write records that were made together and wait until they are on the disk."""
        lines = [
            json.dumps({**record, PART: [place, len(records)]}).encode() + b"\n"
            for place, record in enumerate(records)
        ]
        self._file.write(b"".join(lines))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Release the file for other processes."""
        self._file.close()
