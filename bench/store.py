"""Results that are kept one by one, so that an interrupted measurement goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lookaheadkv_kernels.lookahead.files import write_atomically


def as_lines(value: Any, depth: int) -> str:
    """JSON with one line per row: objects and lists that hold others are spread over lines.

    Args:
        value: what to write.
        depth: how many levels to spread; what lies deeper stays on one line.
    """
    inner = value.values() if isinstance(value, dict) else value
    spread = isinstance(value, dict | list) and any(isinstance(v, dict | list) for v in inner)
    if depth == 0 or not spread:
        return json.dumps(value)
    if isinstance(value, dict):
        lines = [f"{json.dumps(name)}: {as_lines(v, depth - 1)}" for name, v in value.items()]
        return "{\n" + ",\n".join(lines) + "\n}"
    return "[\n" + ",\n".join(as_lines(v, depth - 1) for v in value) + "\n]"


def write_lines(path: Path, value: Any, depth: int) -> None:
    """Write :func:`as_lines`; a crash leaves the old file or the new one."""
    write_atomically(path, (as_lines(value, depth) + "\n").encode())


class Store:
    """A JSON file of named results, and of what they were made with.

    Args:
        path: of the file.
        facts: what the results depend on; a file is continued only with the same facts. Without
            facts the file holds the results alone.

    Attributes:
        results: by name.

    Raises:
        ValueError: the file was made with other facts.
    """

    def __init__(self, path: Path, facts: dict[str, Any] | None = None) -> None:
        self._path = path
        found = json.loads(path.read_text()) if path.is_file() else {}
        if facts is None:
            self._data, self._depth = found, 1
            self.results: dict[str, Any] = found
            return
        facts = json.loads(json.dumps(facts))  # as it will be read back
        if found and found["facts"] != facts:
            raise ValueError(f"{path} was made with {found['facts']}, not with {facts}")
        self._data, self._depth = found or {"facts": facts, "results": {}}, 2
        self.results = self._data["results"]

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """``measure()``, unless an earlier run has done it."""
        if name not in self.results:
            self.results[name] = measure()
            write_lines(self._path, self._data, self._depth)
            print(name, self.results[name], flush=True)
        return self.results[name]
