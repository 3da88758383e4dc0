"""Results that are kept one by one, so that an interrupted experiment goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lookaheadkv_kernels.lookahead.files import write_atomically


class Store:
    """A JSON file of named results, and of what they were made with.

    Args:
        path: of the file.
        facts: what the results depend on; a file is only gone on with under the same.

    Raises:
        ValueError: the file is another experiment's.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path = path
        facts = json.loads(json.dumps(facts))  # as it will be read back
        self.data: dict[str, Any] = {"facts": facts, "results": {}}
        if path.is_file():
            self.data = json.loads(path.read_text())
            if self.data["facts"] != facts:
                raise ValueError(f"{path} was made with {self.data['facts']}, not with {facts}")

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """``measure()``, unless an earlier run has done it."""
        results = self.data["results"]
        if name not in results:
            results[name] = measure()
            write_atomically(self.path, (json.dumps(self.data, indent=1) + "\n").encode())
        return results[name]
