"""`python -m bench.bars [GROUP] [OPTIONS]`: measures a group of bars; `cpu` if none is named."""

from __future__ import annotations

import importlib
import sys

GROUPS = ("cpu", "paged", "method", "gpu", "ruler")


def main(arguments: list[str]) -> int:
    """Measure; the group's exit status."""
    group, rest = "cpu", arguments
    if arguments and not arguments[0].startswith("-"):
        group, rest = arguments[0], arguments[1:]
    if group not in GROUPS:
        print(f"unknown group {group!r}; there are {', '.join(GROUPS)}", file=sys.stderr)
        return 2
    status: int = importlib.import_module(f"bench.bars.{group}").main(rest)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
