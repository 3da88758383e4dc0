"""``lookaheadkv params``: how many parameters lookahead modules add (paper table 1)."""

from __future__ import annotations

import argparse
from typing import Any

from ..lookahead import LookaheadConfig, catalog
from ..lookahead.config import ALL_LINEARS


def add_parser(commands: Any) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "params", help="print the trainable parameters for each known model (paper table 1)"
    )
    parser.add_argument("models", nargs="*", help="model names; all when none is given")
    parser.add_argument("--num-lookahead", type=int, default=32)
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument(
        "--lora-linears",
        nargs="*",
        default=list(ALL_LINEARS),
        metavar="NAME",
        help=f"linear maps with LoRA, among {' '.join(ALL_LINEARS)}; none trains embeddings alone",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table, or nothing where a name or a size is wrong."""
    names = arguments.models or catalog.model_names()
    width = max(len(name) for name in names)
    lines = [f"{'model':<{width}}  trainable  % of model"]
    for name in names:
        model = catalog.model_facts(name)
        config = LookaheadConfig(
            model=model.shape,
            num_lookahead=arguments.num_lookahead,
            lora_rank=arguments.lora_rank,
            lora_linears=tuple(arguments.lora_linears),
        )
        count = config.num_parameters()
        # Relative to the model with its modules, as in the paper's table 1.
        share = 100 * count / (model.num_parameters + count)
        lines.append(f"{name:<{width}}  {count / 1e6:8.1f}M  {share:10.2f}")
    print("\n".join(lines))
    return 0
