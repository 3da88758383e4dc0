"""``lookaheadkv generate-responses``: the model's answers to prompts, as training data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import add_model_options


def add_parser(commands: Any) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "generate-responses",
        help="let the model answer the prompts of a JSONL file, for `lookaheadkv train`",
    )
    add_model_options(parser)
    parser.add_argument("prompts", type=Path, help="JSONL with `prompt` (text or chat messages)")
    parser.add_argument("output", type=Path, help="JSONL; an interrupted one is continued")
    parser.add_argument("--max-response", type=int, default=512, help="tokens")
    parser.add_argument("--overwrite", action="store_true", help="start the output anew")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the responses."""
    import torch

    from ..integrations.transformers.attention import attach
    from ..integrations.transformers.loading import load
    from ..training.responses import generate_responses

    model, tokenizer = load(
        arguments.model, dtype=getattr(torch, arguments.dtype), device=arguments.device
    )
    attach(model)
    count = generate_responses(
        model,
        tokenizer,
        arguments.prompts,
        arguments.output,
        max_response=arguments.max_response,
        overwrite=arguments.overwrite,
    )
    print(f"{count} responses written to {arguments.output}")
    return 0
