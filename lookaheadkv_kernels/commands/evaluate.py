"""``lookaheadkv eval``: does the small cache still answer?"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import Any

from ..policies import POLICY_NAMES
from .building import Policies, check_fit, check_judge, load_judge, sources_of
from .model import ModelFiles, check_installed, launched
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
    parser.set_defaults(run=run, resumes=True)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, or continue an earlier run; print the table."""
    import torch
    import transformers

    from .. import __version__
    from ..evaluation.catalog import expanded, make_tasks
    from ..evaluation.plan import Grid, config_of
    from ..evaluation.report import table
    from ..evaluation.runner import Evaluation, finish
    from ..info import collect
    from ..policies.budget import check_at_least, check_budget

    for name, least in (("samples", 1), ("together", 1), ("threads", 0)):
        check_at_least(name, getattr(arguments, name), least)
    for length in arguments.length:
        check_at_least("length", length, 1)
    if arguments.chunk is not None:
        check_at_least("chunk", arguments.chunk, 1)
    shard = _shard(arguments)
    names = expanded(arguments.task)
    check_installed("eval", "matplotlib")
    sources = sources_of(arguments)

    def grid(tokenizer: Any) -> Grid:
        return Grid(
            make_tasks(names, tokenizer, arguments.seed, sources),
            arguments.length,
            list(dict.fromkeys(arguments.policy)),
            list(dict.fromkeys(arguments.budget)),
            arguments.samples,
        )

    def report(metrics: dict[str, Any]) -> int:
        print(table(metrics))
        if not metrics["complete"]:
            print(f"\n{metrics['predictions']} of {metrics['expected']} predictions so far")
        return 0

    if arguments.merge:
        return report(finish(arguments.output, grid(None)))  # counting takes no tokenizer
    files = ModelFiles.of(arguments)
    policies = Policies(arguments, files)
    plan = grid(files.tokenizer)
    for budget in plan.budgets:
        check_budget(budget, files.config.num_hidden_layers)
    for task, sample in plan.check_samples(files.positions):
        check_fit(policies.pinned(), plan.budgets, len(sample.prompt_ids), f"{task.name}'s sample")
    facts = {
        "model": arguments.model,
        "dtype": arguments.dtype,
        "seed": arguments.seed,
        **policies.facts,
    }
    environment = {
        "lookaheadkv_kernels": __version__,
        "transformers": transformers.__version__,
        "device": arguments.device,
        "platform": platform.platform(),
        **collect(),
    }
    more = {"measures": arguments.measures, "chunk": arguments.chunk}
    config_of(
        arguments.output, plan, {**facts, **more}, environment
    )  # as the run will, at its start
    check_judge(sources.judge)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = files.load()
    load_judge(sources.judge)
    evaluation = Evaluation(
        arguments.output,
        model,
        files.tokenizer,
        policies.make(model),
        plan,
        facts=facts,
        environment=environment,
        shard=shard,
        together=arguments.together,
        **more,
    )
    return report(evaluation.run())


def _shard(arguments: argparse.Namespace) -> Any:
    from ..evaluation.records import Shard

    if arguments.shard is not None:
        return Shard.parse(arguments.shard)
    if launched():
        return Shard(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    return Shard()
