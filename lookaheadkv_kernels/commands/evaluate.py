"""``lookaheadkv eval``: does the small cache still answer?"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import Any

from ..policies import POLICY_NAMES
from .options import add_model_options

DESCRIPTION = """\
Evaluate eviction policies at budgets on tasks. An interrupted run goes on where it stood when it is
started again with the same arguments; more tasks, policies, budgets or samples may be added to it.
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
    parser.add_argument(
        "--policy",
        nargs="+",
        choices=POLICY_NAMES,
        default=["full", "snapkv"],
        metavar="NAME",
        help=f"among {', '.join(POLICY_NAMES)} (default: full snapkv)",
    )
    parser.add_argument(
        "--budget",
        nargs="+",
        type=_budget,
        default=[128],
        metavar="N",
        help="entries kept a KV head: counts, or ratios such as 0.1 (default: 128)",
    )
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
    parser.add_argument(
        "--weights",
        help="lookahead modules: packaged name, folder, hub id (default: the model's name)",
    )
    parser.add_argument("--draft-model", help="that drafts for speckv")
    parser.add_argument("--chunk", type=int, help="prefill in parts of so many tokens")
    parser.add_argument(
        "--together",
        type=int,
        default=32,
        metavar="N",
        help="answers of a sample that are decoded as one batch (default: %(default)s)",
    )
    parser.add_argument("--shard", metavar="I/N", help="run share I of N (default: from torchrun)")
    parser.add_argument(
        "--merge", action="store_true", help="run nothing; merge and report what is there"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's choice")
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
    parser.set_defaults(run=run)


def _budget(text: str) -> int | float:
    return int(text) if text.isdecimal() else float(text)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, or go on; print the table."""
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
            make_tasks(names, tokenizer, arguments.seed, _sources(arguments)),
            arguments.length,
            list(dict.fromkeys(arguments.policy)),
            list(dict.fromkeys(arguments.budget)),
            arguments.samples,
        )

    if arguments.merge:
        metrics = finish(arguments.output, grid(None))  # counting samples takes no tokenizer
    else:
        model, tokenizer = load(
            arguments.model, dtype=getattr(torch, arguments.dtype), device=_device(arguments.device)
        )
        policies, of_policies = _policies(arguments, model)
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


def _sources(arguments: argparse.Namespace) -> Any:
    from ..evaluation.catalog import Sources

    names = ("haystack", "words", "squad", "hotpotqa", "longbench", "longproc", "mtbench")
    return Sources(**{name: getattr(arguments, name) for name in names}, judge=_judge(arguments))


def _judge(arguments: argparse.Namespace) -> Any:
    """An endpoint, a loaded model, or None.

    Raises:
        ValueError: an endpoint without the name of a model.
    """
    import torch

    from ..evaluation.judge import EndpointJudge, LocalJudge
    from ..integrations.transformers.loading import load

    if arguments.judge_url is not None:
        if arguments.judge_model is None:
            raise ValueError("--judge-url needs --judge-model")
        return EndpointJudge(arguments.judge_url, arguments.judge_model)
    if arguments.judge_model is None:
        return None
    dtype = getattr(torch, arguments.dtype)
    judge, tokenizer = load(arguments.judge_model, dtype=dtype, device=_device(arguments.device))
    return LocalJudge(judge, tokenizer, name=arguments.judge_model)


def _device(device: str) -> str:
    """Under torchrun every process takes a GPU of its own."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and _launched() else device


def _launched() -> bool:
    return "LOCAL_RANK" in os.environ


def _shard(arguments: argparse.Namespace) -> Any:
    from ..evaluation.records import Shard

    if arguments.shard is not None:
        return Shard.parse(arguments.shard)
    if _launched():
        return Shard(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    return Shard()


def _policies(arguments: argparse.Namespace, model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The policies, and which weights they use, for the record of the run.

    Raises:
        FileNotFoundError: the modules are not there.
        ValueError: they are for another model, or a draft model is missing.
    """
    import hashlib

    import torch

    from ..integrations.transformers.loading import load
    from ..integrations.transformers.weights import find_modules
    from ..lookahead import ModelShape, load_modules
    from ..lookahead.files import WEIGHTS_FILE
    from ..policies import make_policy

    policies: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for name in dict.fromkeys(arguments.policy):
        options: dict[str, Any] = {}
        if name == "lookahead":
            folder = find_modules(arguments.weights or arguments.model)
            modules = load_modules(folder)
            shape = ModelShape.of(model.config)
            if modules.config.model != shape:
                raise ValueError(f"{folder} is for {modules.config.model}, the model is {shape}")
            options["modules"] = modules.to(model.device, model.dtype)
            digest = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
            facts["weights_sha256"] = digest
        if name == "speckv":
            if arguments.draft_model is None:
                raise ValueError("policy speckv needs --draft-model")
            facts["draft_model"] = arguments.draft_model
            options["draft_model"], _ = load(
                arguments.draft_model,
                dtype=getattr(torch, arguments.dtype),
                device=str(model.device),
            )
        policies[name] = make_policy(name, **options)
    return policies, facts
