"""Options that several subcommands share."""

from __future__ import annotations

import argparse

DTYPES = ("float32", "bfloat16", "float16")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """``--model``, ``--dtype``, ``--device``."""
    parser.add_argument(
        "--model",
        required=True,
        help="a packaged model (smollm2-135m-instruct), a .gguf file, a folder, or a hub id",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the model")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
