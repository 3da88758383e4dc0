"""``lookaheadkv ttft``: the predicted cost of eviction before the first token (paper table 5)."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from ..cost_model.hardware import HARDWARE, Hardware, find_hardware
from ..cost_model.models import find_draft, find_model
from ..cost_model.plot import check_path, write_plot
from ..cost_model.table import (
    as_data,
    breakdown,
    heading,
    is_paper_table,
    paper_table,
    table,
)
from ..cost_model.ttft import OURS, PAPER, Accounting, predict
from ..cost_model.workload import Setting
from ..lookahead.config import ALL_LINEARS
from .model import check_installed

DESCRIPTION = """\
Predict FLOPs, memory traffic, time to the first token and the overhead of eviction, for any model
and chip. These are counts over assumed rates, not measurements: see docs/cost_model.md.
"""
# Options that replace one constant of the chip, under the names of its fields.
_RATES = {
    "tflops": "peak of dense 16-bit matrix products, TFLOP/s",
    "gbps": "peak memory bandwidth, GB/s",
    "flops_efficiency": "reached share of --tflops, in (0, 1]",
    "memory_efficiency": "reached share of --gbps, in (0, 1]",
}
_SIZES = {
    "budget": "entries kept a KV head",
    "window": "prompt rows that observe in SnapKV, SpecKV and LAQ",
    "num_lookahead": "LookaheadKV's learned rows",
    "draft_tokens": "tokens that SpecKV and LAQ draft",
    "lora_rank": "of LookaheadKV's LoRA",
}


def add_parser(commands: Any) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "ttft",
        help="predict the time to the first token and the overhead of eviction (paper table 5)",
        description=DESCRIPTION,
    )
    parser.add_argument(
        "--model",
        default="llama-3.1-8b",
        help="a model of `lookaheadkv params`, a folder with config.json, or owner/name on the hub "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--draft-model",
        help="that drafts for SpecKV (default: the smallest known relative of the model)",
    )
    parser.add_argument(
        "--context",
        type=int,
        nargs="+",
        default=[4096, 8192, 16384, 32768],
        metavar="TOKENS",
        help="prompt lengths (default: 4096 8192 16384 32768)",
    )
    parser.add_argument(
        "--method",
        nargs="+",
        metavar="NAME",
        help=f"among {', '.join(OURS.workloads)} (default: all)",
    )
    for field in dataclasses.fields(Setting):
        if field.name in _SIZES:
            parser.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=int,
                default=field.default,
                help=f"{_SIZES[field.name]} (default: %(default)s)",
            )
    parser.add_argument(
        "--lora-linears",
        nargs="*",
        default=list(ALL_LINEARS),
        metavar="NAME",
        help=f"linear maps with LoRA, among {' '.join(ALL_LINEARS)} (default: all)",
    )
    parser.add_argument(
        "--hardware",
        metavar="NAME",
        help=f"among {', '.join(HARDWARE)} (default: {OURS.chip}; with --paper {PAPER.chip})",
    )
    for name, text in _RATES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help=f"instead: {text}")
    parser.add_argument(
        "--paper",
        action="store_true",
        help="count as the paper does (binary units, no causal half), beside the cells it prints",
    )
    parser.add_argument("--breakdown", action="store_true", help="a row for every phase too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the paper's figure 3: .png or .svg"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the tables, or JSON; draw the picture."""
    if arguments.plot is not None:
        check_path(arguments.plot)
        check_installed("bench", "matplotlib")
    accounting = PAPER if arguments.paper else OURS
    setting = _setting(arguments)
    hardware = _hardware(arguments, accounting)
    methods = arguments.method or [
        name for name in accounting.workloads if name != "speckv" or setting.draft is not None
    ]
    predictions = [
        predict(setting, hardware, method, context, accounting)
        for context in arguments.context
        for method in methods
    ]
    if arguments.plot is not None:
        whose = "the paper's" if arguments.paper else "our"
        title = f"{setting.model.name} on {hardware.name}, {whose} prediction"
        write_plot(arguments.plot, predictions, title)
    if arguments.json:
        print(json.dumps(as_data(predictions, setting, hardware, accounting), indent=1))
        return 0
    print(heading(setting, hardware, accounting), end="\n\n")
    if is_paper_table(setting, hardware, accounting):
        print(paper_table(predictions))
    else:
        print(table(predictions, accounting))
    if setting.draft is None and arguments.method is None:
        print("\nspeckv is left out: no draft model is known, give --draft-model")
    if arguments.breakdown:
        print("\n" + breakdown(predictions, accounting))
    return 0


def _setting(arguments: argparse.Namespace) -> Setting:
    model = find_model(arguments.model)
    draft = find_model(arguments.draft_model) if arguments.draft_model else find_draft(model)
    return Setting(
        model,
        draft,
        lora_linears=tuple(arguments.lora_linears),
        **{name: getattr(arguments, name) for name in _SIZES},
    )


def _hardware(arguments: argparse.Namespace, accounting: Accounting) -> Hardware:
    """The named or default chip, with the constants that the options replace."""
    chip = find_hardware(arguments.hardware or accounting.chip)
    rates = {
        name: getattr(arguments, name) for name in _RATES if getattr(arguments, name) is not None
    }
    return dataclasses.replace(chip, name=f"altered {chip.name}", **rates) if rates else chip
