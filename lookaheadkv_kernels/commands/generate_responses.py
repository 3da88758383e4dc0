"""``lookaheadkv generate-responses``: the model's answers to prompts, as training data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .._log import logger
from .model import ModelFiles
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
    parser.set_defaults(run=run, resumes=True)


def run(arguments: argparse.Namespace) -> int:
    """Write the responses."""
    from ..training.responses import ResponsesFile

    files = ModelFiles.of(arguments)
    responses = ResponsesFile(
        arguments.prompts,
        arguments.output,
        files.tokenizer,
        max_response=arguments.max_response,
        facts={"model": arguments.model, "dtype": arguments.dtype},
        vocabulary=files.config.vocab_size,
        overwrite=arguments.overwrite,
    )
    missing = responses.total - responses.done
    logger.info(
        f"{responses.total:,} prompts in {arguments.prompts}, {responses.done:,} answered already; "
        f"up to {missing * arguments.max_response:,} tokens to write, one after another"
    )
    count = responses.write(files.load()) if missing else 0
    print(f"{count} responses written to {arguments.output}")
    return 0
