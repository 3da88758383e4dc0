"""The ``lookaheadkv`` command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import info
from ._version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(prog="lookaheadkv", description="LookaheadKV kernels")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="print version, backends, instruction sets and device facts")
    parser.parse_args(arguments)
    facts = info.collect()
    width = max(map(len, facts))
    for label, value in facts.items():
        print(f"{label:<{width}}  {value}")
    return 0
