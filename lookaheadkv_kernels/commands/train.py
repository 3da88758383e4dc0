"""``lookaheadkv train``: lookahead modules for a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..lookahead.config import ALL_LINEARS
from ..training.config import TrainingConfig
from .options import add_model_options

DESCRIPTION = """\
Train lookahead modules for a model. An interrupted run continues from its newest checkpoint
when it is started again with the same arguments. Several processes share the batches: start it by
`torchrun --nproc-per-node 8 -m lookaheadkv_kernels train ...` or `accelerate launch`.
"""
# Fields of TrainingConfig that are options of the same name.
_OPTIONS = {
    "steps": "optimizer steps",
    "batch_size": "samples a step, over all processes",
    "learning_rate": "peak rate; the paper has 1e-3 for Llama and 2e-4 for Qwen",
    "warmup": "share of the steps in which the rate rises",
    "clip": "largest norm of a step's gradient",
    "max_prompt": "prompt tokens; longer ones lose their middle",
    "max_response": "response tokens that count",
    "seed": "of weights and data",
    "checkpoint_every": "steps",
    "eval_every": "steps between evaluations on held-out samples; 0: none",
    "eval_samples": "held-out samples of an evaluation",
}


def add_parser(commands: Any) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "train",
        help="train lookahead modules for a model",
        description=DESCRIPTION,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_model_options(parser)
    parser.add_argument(
        "--data",
        required=True,
        help="a JSONL file of {prompt, response}, a folder of texts, or `recipe` for the built-in "
        "mixture of retrieval, prose, code and chat",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    defaults = TrainingConfig()
    for name, text in _OPTIONS.items():
        default = getattr(defaults, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=text
        )
    parser.add_argument(
        "--checkpointing", action="store_true", help="recompute layers to save memory"
    )
    parser.add_argument(
        "--responses",
        choices=("data", "model"),
        default="data",
        help="responses of the data where it has some, or the model's own everywhere",
    )
    parser.add_argument(
        "--skew",
        type=float,
        default=2.0,
        help="with --data recipe: how much prompt lengths lean to short ones; 1: not at all",
    )
    parser.add_argument(
        "--kinds",
        nargs="*",
        type=_share,
        metavar="KIND=SHARE",
        help="with --data recipe: kinds of samples and their shares, such as retrieval=0.7 "
        "prose=0.3; without it, those of the recipe",
    )
    parser.add_argument(
        "--init", help="go on from these modules (a packaged set, a folder, a hub id), not anew"
    )
    parser.add_argument("--num-lookahead", type=int, default=32, help="learned tokens")
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--lora-alpha", type=float, default=32.0)
    parser.add_argument(
        "--lora-linears", nargs="*", default=list(ALL_LINEARS), metavar="NAME", help="with LoRA"
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads a process; 0: torch's choice"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, or continue training."""
    import torch

    from ..integrations.transformers.attention import attach
    from ..integrations.transformers.loading import load
    from ..training.trainer import Trainer

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config = TrainingConfig(
        checkpointing=arguments.checkpointing,
        **{name: getattr(arguments, name) for name in _OPTIONS},
    )
    model, tokenizer = load(
        arguments.model, dtype=getattr(torch, arguments.dtype), device=arguments.device
    )
    attach(model)
    modules = _modules(arguments, model)
    samples = _samples(arguments, tokenizer, "train")
    held_out = _samples(arguments, tokenizer, "heldout") if config.eval_every else None
    trainer = Trainer(
        model,
        modules.to(model.device),
        samples,
        arguments.output,
        config,
        held_out,
        facts=_facts(arguments),
    )
    trainer.run()
    return 0


def _share(text: str) -> tuple[str, float]:
    """Parse a kind of samples and its share.

    Raises:
        argparse.ArgumentTypeError: it is not of the form KIND=SHARE with a share above 0.
    """
    kind, _, share = text.partition("=")
    try:
        value = float(share)
    except ValueError:
        value = 0.0
    if not kind or not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"need KIND=SHARE with a share above 0, got {text!r}")
    return kind, value


def _facts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Facts for the record of a run, besides its hyper-parameters; earlier runs, oldest first."""
    from ..integrations.transformers.weights import find_modules
    from ..lookahead import training_record

    facts = {name: getattr(arguments, name) for name in ("model", "data", "responses")}
    if arguments.data == "recipe":
        facts["skew"] = arguments.skew
        if arguments.kinds:
            facts["kinds"] = dict(arguments.kinds)
    if arguments.init is not None:
        last = training_record(find_modules(arguments.init))
        facts |= {"init": arguments.init, "earlier": [*last.pop("earlier", []), last]}
    return facts


def _modules(arguments: argparse.Namespace, model: Any) -> Any:
    """New modules, or those of ``--init``, in float32.

    Raises:
        ValueError: the latter are for another model.
    """
    import torch

    from ..integrations.transformers.weights import find_modules
    from ..lookahead import LookaheadConfig, LookaheadModules, ModelShape, load_modules

    shape = ModelShape.of(model.config)
    if arguments.init is not None:
        modules = load_modules(find_modules(arguments.init)).float()
        if modules.config.model != shape:
            raise ValueError(f"--init {arguments.init} is for another model: {modules.config}")
        return modules
    modules = LookaheadModules(
        LookaheadConfig(
            model=shape,
            num_lookahead=arguments.num_lookahead,
            lora_rank=arguments.lora_rank,
            lora_alpha=arguments.lora_alpha,
            lora_linears=tuple(arguments.lora_linears),
        )
    )
    std = float(model.get_input_embeddings().weight.detach().float().std())
    modules.reset_parameters(std, torch.Generator().manual_seed(arguments.seed))
    return modules


def _samples(arguments: argparse.Namespace, tokenizer: Any, split: str) -> Any:
    """The data that ``--data`` names.

    Raises:
        ValueError: held-out samples are wanted from data that has no such split.
    """
    from ..training.data import JsonlSamples, TextSamples, WithoutResponses

    if arguments.data == "recipe":
        from ..training.recipe import Recipe

        samples: Any = Recipe(
            tokenizer,
            seed=arguments.seed,
            max_tokens=arguments.max_prompt,
            skew=arguments.skew,
            split=split,
            kinds=dict(arguments.kinds) if arguments.kinds else None,
        )
    elif split != "train":
        raise ValueError("--eval-every needs --data recipe, which has a held-out split")
    elif Path(arguments.data).is_dir():
        samples = TextSamples(
            arguments.data,
            tokenizer,
            arguments.seed,
            lengths=(min(256, arguments.max_prompt), arguments.max_prompt),
            max_response=arguments.max_response,
        )
    else:
        samples = JsonlSamples(arguments.data, tokenizer, arguments.seed)
    return WithoutResponses(samples) if arguments.responses == "model" else samples
