"""``lookaheadkv eval``: does the small cache still answer?"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import Any

from ..policies import POLICY_NAMES
from .building import device_of, launched, policies_of, sources_of
from .options import add_cell_options, add_data_options, add_model_options, add_policy_options

DESCRIPTION = """\
Evaluate eviction policies at budgets on tasks. An interrupted run continues where it stopped when
it is started again with the same arguments; more tasks, policies, budgets or samples may be added.
Several processes share the samples: start it by `torchrun --nproc-per-node 8 -m lookaheadkv_kernels
eval ...`, or with --shard 0/8 ... 7/8. See docs/evaluation.md.
"""


def add_parser(commands: Any) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "eval", help="evaluate policies and budgets on benchmarks", description=DESCRIPTION
    )
    add_model_options(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--task", nargs="+", required=True, metavar="NAME", help="tasks, or groups such as `ruler`"
    )
    add_cell_options(parser, POLICY_NAMES, ("full", "snapkv"), 128)
    parser.add_argument(
        "--length",
        nargs="+",
        type=int,
        default=[4096],
        metavar="TOKENS",
        help="context lengths, room for the answer included (default: 4096)",
    )
    parser.add_argument(
        "--samples", type=int, default=50, help="of each task and length (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")
    parser.add_argument(
        "--measures",
        action="store_true",
        help="also what needs no labels: recall, attention mass, KL, perturbation, NLL, agreement",
    )
    add_policy_options(parser)
    parser.add_argument("--chunk", type=int, help="prefill in parts of so many tokens")
    parser.add_argument(
        "--together",
        type=int,
        default=32,
        metavar="N",
        help="answers that are decoded as one batch, of as many samples as there is room for "
        "(default: %(default)s)",
    )
    parser.add_argument("--shard", metavar="I/N", help="run share I of N (default: from torchrun)")
    parser.add_argument(
        "--merge", action="store_true", help="run nothing; merge and report what is there"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's choice")
    add_data_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, or continue an earlier run; print the table."""
    import torch
    import transformers

    from .. import __version__
    from ..evaluation.catalog import expanded, make_tasks
    from ..evaluation.report import table
    from ..evaluation.runner import Evaluation, Grid, finish
    from ..info import collect
    from ..integrations.transformers.loading import load

    names = expanded(arguments.task)
    if arguments.samples < 1:
        raise ValueError(f"samples must be >= 1, got {arguments.samples}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    def grid(tokenizer: Any) -> Grid:
        return Grid(
            make_tasks(names, tokenizer, arguments.seed, sources_of(arguments)),
            arguments.length,
            list(dict.fromkeys(arguments.policy)),
            list(dict.fromkeys(arguments.budget)),
            arguments.samples,
        )

    if arguments.merge:
        metrics = finish(arguments.output, grid(None))  # counting samples takes no tokenizer
    else:
        model, tokenizer = load(
            arguments.model,
            dtype=getattr(torch, arguments.dtype),
            device=device_of(arguments.device),
        )
        policies, of_policies = policies_of(arguments, model)
        evaluation = Evaluation(
            arguments.output,
            model,
            tokenizer,
            policies,
            grid(tokenizer),
            facts={
                "model": arguments.model,
                "dtype": arguments.dtype,
                "seed": arguments.seed,
                **of_policies,
            },
            environment={
                "lookaheadkv_kernels": __version__,
                "transformers": transformers.__version__,
                "device": arguments.device,
                "platform": platform.platform(),
                **collect(),
            },
            shard=_shard(arguments),
            measures=arguments.measures,
            together=arguments.together,
            chunk=arguments.chunk,
        )
        metrics = evaluation.run()
    print(table(metrics))
    if not metrics["complete"]:
        print(f"\n{metrics['predictions']} of {metrics['expected']} predictions so far")
    return 0


def _shard(arguments: argparse.Namespace) -> Any:
    from ..evaluation.records import Shard

    if arguments.shard is not None:
        return Shard.parse(arguments.shard)
    if launched():
        return Shard(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    return Shard()
