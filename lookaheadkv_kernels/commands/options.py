"""Options that several subcommands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..info import multiplies_bf16

DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """``--model``, ``--dtype``, ``--device``."""
    parser.add_argument(
        "--model",
        required=True,
        help="a packaged model (smollm2-135m-instruct), a .gguf file, a folder, or a hub id",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of the model; auto: bfloat16, but float32 on a CPU that has no instructions to "
        "multiply bfloat16",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")


def settle_dtype(arguments: argparse.Namespace) -> None:
    """Replace ``--dtype auto``, of the commands that have it, by what it means on this machine."""
    if getattr(arguments, "dtype", None) == "auto":
        fast = arguments.device.partition(":")[0] != "cpu" or multiplies_bf16()
        arguments.dtype = "bfloat16" if fast else "float32"


def budget(text: str) -> int | float:
    """A count, or a ratio such as ``0.1``."""
    return int(text) if text.isdecimal() else float(text)


def add_cell_options(
    parser: argparse.ArgumentParser, names: Sequence[str], policies: Sequence[str], entries: int
) -> None:
    """``--policy`` and ``--budget``, which are crossed.

    Args:
        parser: gets the options.
        names: the policies to choose from.
        policies: the default of ``--policy``.
        entries: the default of ``--budget``.
    """
    parser.add_argument(
        "--policy",
        nargs="+",
        choices=names,
        default=list(policies),
        metavar="NAME",
        help=f"among {', '.join(names)} (default: {' '.join(policies)})",
    )
    parser.add_argument(
        "--budget",
        nargs="+",
        type=budget,
        default=[entries],
        metavar="N",
        help=f"entries kept per KV head: counts, or ratios such as 0.1 (default: {entries})",
    )


def add_policy_options(parser: argparse.ArgumentParser) -> None:
    """What policies are made from: ``--weights``, ``--draft-model``."""
    parser.add_argument(
        "--weights",
        help="lookahead modules: packaged name, folder, hub id (default: the model's name)",
    )
    parser.add_argument("--draft-model", help="that drafts for speckv")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """What tasks are made from."""
    data = parser.add_argument_group("data")
    data.add_argument("--haystack", type=Path, help="text for RULER's essays (default: installed)")
    data.add_argument(
        "--words",
        choices=("builtin", "wonderwords"),
        default="builtin",
        help="whose words RULER's keys are (default: %(default)s)",
    )
    data.add_argument("--squad", type=Path, help="SQuAD v2 JSON, for qa_1")
    data.add_argument("--hotpotqa", type=Path, help="HotpotQA JSON, for qa_2")
    data.add_argument("--longbench", type=Path, help="folder of LongBench's JSONL files")
    data.add_argument("--longproc", type=Path, help="LongProc's data folder")
    data.add_argument("--mtbench", type=Path, help="folder of MT-Bench's question.jsonl")
    data.add_argument(
        "--judge-url", help="OpenAI-compatible endpoint of MT-Bench's judge, e.g. http://host/v1"
    )
    data.add_argument(
        "--judge-model", help="the judge's name at --judge-url, or a model to load and judge with"
    )
