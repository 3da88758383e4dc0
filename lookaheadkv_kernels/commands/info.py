"""``lookaheadkv info``: facts about this installation and machine."""

from __future__ import annotations

import argparse
from typing import Any

from .. import info


def add_parser(commands: Any) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "info", help="print version, backends, instruction sets and device facts"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print them."""
    facts = info.collect()
    width = max(map(len, facts))
    for label, value in facts.items():
        print(f"{label:<{width}}  {value}")
    return 0
