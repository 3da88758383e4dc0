"""The ``lookaheadkv`` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import _interrupts, _log
from ._version import __version__
from .commands import evaluate, generate_responses, info, inspect, params, train, ttft
from .commands.options import settle_dtype

COMMANDS = (info, params, ttft, generate_responses, train, evaluate, inspect)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status.

    It is 2 where the arguments or the data cannot work, and 128 + n after signal n (130: Ctrl-C).
    """
    parser = argparse.ArgumentParser(prog="lookaheadkv", description="LookaheadKV kernels")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    parsed = parser.parse_args(arguments)
    settle_dtype(parsed)
    try:
        with _interrupts.raised(), _log.shown():
            status: int = parsed.run(parsed)
            sys.stdout.flush()  # whoever reads it may have gone
    except KeyboardInterrupt as interrupt:
        return _interrupted(parsed, interrupt)
    except BrokenPipeError:
        # Python would complain once more when it flushes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, ModuleNotFoundError, ValueError) as error:
        print(f"lookaheadkv {parsed.command}: {error}", file=sys.stderr)
        return 2
    return status


def _interrupted(parsed: argparse.Namespace, interrupt: KeyboardInterrupt) -> int:
    """Say in one line what became of the work."""
    parts = ["interrupted"]
    if isinstance(interrupt, _interrupts.Interrupted) and interrupt.saved:
        parts.append(interrupt.saved)
    if getattr(parsed, "resumes", False):
        parts.append("run the same command to go on")
    if os.environ.get("RANK", "0") == "0":  # one line for all processes of torchrun
        print(f"lookaheadkv {parsed.command}: {'; '.join(parts)}", file=sys.stderr)
    return 128 + _interrupts.number_of(interrupt)
