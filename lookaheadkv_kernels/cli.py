"""The ``lookaheadkv`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ._version import __version__
from .commands import evaluate, generate_responses, info, inspect, params, train, ttft
from .commands.options import settle_dtype

COMMANDS = (info, params, ttft, generate_responses, train, evaluate, inspect)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status: 2 where its arguments cannot work."""
    parser = argparse.ArgumentParser(prog="lookaheadkv", description="LookaheadKV kernels")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    parsed = parser.parse_args(arguments)
    settle_dtype(parsed)
    try:
        status: int = parsed.run(parsed)
    except (FileNotFoundError, ModuleNotFoundError, ConnectionError, ValueError) as error:
        print(f"lookaheadkv {parsed.command}: {error}", file=sys.stderr)
        return 2
    return status
