"""``lookaheadkv train``: lookahead modules for a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .._log import logger
from ..lookahead.config import ALL_LINEARS, LookaheadConfig
from ..training.config import TrainingConfig
from .model import ModelFiles, check_installed, is_main
from .options import add_model_options

DESCRIPTION = """\
Train lookahead modules for a model. A run that is interrupted (Ctrl-C) writes a checkpoint, and
continues from its newest one when it is started again with the same arguments. Several processes
share the batches: start it by `torchrun --nproc-per-node 8 -m lookaheadkv_kernels train ...` or
`accelerate launch`.
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
    "checkpoint_every": "most steps between checkpoints",
    "checkpoint_minutes": "most minutes between checkpoints; 0: only steps count",
    "eval_every": "steps between evaluations on held-out samples; 0: none",
    "eval_samples": "held-out samples of an evaluation",
}
# Fields of LookaheadConfig that are options of the same name.
_MODULES = {
    "num_lookahead": (int, "learned tokens"),
    "lora_rank": (int, "rank of every LoRA"),
    "lora_alpha": (float, "outputs are scaled by this over the rank"),
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
    group = parser.add_argument_group("modules", "with --init they are those of its modules")
    for name, (kind, text) in _MODULES.items():
        default = getattr(LookaheadConfig, name)
        # Not argparse's default, so that it is known what was asked for.
        option = f"--{name.replace('_', '-')}"
        group.add_argument(
            option, type=kind, default=argparse.SUPPRESS, help=f"{text} (default: {default})"
        )
    group.add_argument(
        "--lora-linears",
        nargs="*",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help=f"linear maps with LoRA (default: {' '.join(ALL_LINEARS)})",
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads a process; 0: torch's choice"
    )
    parser.set_defaults(run=run, resumes=True)


def run(arguments: argparse.Namespace) -> int:
    """Train, or continue training: all is read and checked before the model is loaded."""
    import torch

    from ..policies.budget import check_at_least
    from ..training.checkpoint import check_resumable
    from ..training.trainer import Trainer

    check_at_least("threads", arguments.threads, 0)
    check_installed("train", "matplotlib")
    config = TrainingConfig(
        checkpointing=arguments.checkpointing,
        **{name: getattr(arguments, name) for name in _OPTIONS},
    )
    if arguments.output.exists() and not arguments.output.is_dir():
        raise ValueError(f"output must be a folder, got the file {arguments.output}")
    files = ModelFiles.of(arguments)
    modules_config = _modules_config(arguments, files)
    samples = _samples(arguments, files, "train")
    held_out = _samples(arguments, files, "heldout") if config.eval_every else None
    facts = _facts(arguments, samples)
    path = check_resumable(arguments.output, {**facts, **config.to_dict()}, modules_config)
    if is_main():
        if path is not None:
            logger.info(f"going on from {path}")
        for line in forecast(samples, config, files.positions):
            logger.info(line)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = files.load()
    modules = _modules(arguments, model, modules_config)
    trainer = Trainer(
        model,
        modules.to(model.device),
        samples,
        arguments.output,
        config,
        held_out,
        facts=facts,
    )
    trainer.run()
    return 0


def forecast(samples: Any, config: TrainingConfig, positions: int | None) -> list[str]:
    """What the data mean for the run, in sentences; known before it begins.

    Args:
        samples: the data.
        config: of the run.
        positions: tokens that the model was made for; None: it does not say.
    """
    visits = config.steps * config.batch_size
    lines = [f"steps: {config.steps:,}, of {config.batch_size} samples; {visits:,} in all"]
    records: int | None = getattr(samples, "num_records", None)
    if records is not None:
        lines[0] += f", {visits / records:.3g} times the {records:,} records"
        if config.batch_size > records:
            lines.append(
                f"a batch of {config.batch_size} is larger than the data: every step sees some of "
                f"the {records:,} records more than once"
            )
    share: float = getattr(samples, "unanswered", 0.0)
    if share:
        which = "all" if records is None else f"{round(share * records):,} of {records:,}"
        lines.append(
            f"{which} responses are missing: the model writes one at every visit, about "
            f"{round(share * visits):,} of up to {config.max_response:,} tokens in this run, one "
            "token after another; `lookaheadkv generate-responses` writes each of them once"
        )
    longest = config.max_prompt + config.max_response
    if positions is not None and longest > positions:
        lines.append(
            f"max_prompt and max_response allow {longest:,} tokens, but the model was made for "
            f"{positions:,}: longer samples train it where it is weak"
        )
    return lines


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


def _facts(arguments: argparse.Namespace, samples: Any) -> dict[str, Any]:
    """Facts for the record of a run, besides its hyper-parameters; earlier runs, oldest first."""
    from ..integrations.transformers.weights import find_modules
    from ..lookahead import training_record
    from ..lookahead.files import weights_sha256

    facts = {name: getattr(arguments, name) for name in ("model", "dtype", "data", "responses")}
    if (digest := getattr(samples, "sha256", None)) is not None:
        facts["data_sha256"] = digest
    if arguments.data == "recipe":
        facts["skew"] = arguments.skew
        if arguments.kinds:
            facts["kinds"] = dict(arguments.kinds)
    if arguments.init is not None:
        folder = find_modules(arguments.init)
        last = training_record(folder)
        facts |= {
            "init": arguments.init,
            "init_sha256": weights_sha256(folder),
            "earlier": [*last.pop("earlier", []), last],
        }
    return facts


def _modules_config(arguments: argparse.Namespace, files: ModelFiles) -> LookaheadConfig:
    """The configuration of new modules, or of those of ``--init``.

    Raises:
        ValueError: the latter are for another model, or other sizes are asked for as well.
    """
    from ..integrations.transformers.weights import find_modules
    from ..lookahead import ModelShape, load_modules

    shape = ModelShape.of(files.config)
    asked = {name: vars(arguments)[name] for name in _MODULES if name in arguments}
    if "lora_linears" in arguments:
        asked["lora_linears"] = tuple(arguments.lora_linears)
    if arguments.init is None:
        return LookaheadConfig(model=shape, **asked)
    config = load_modules(find_modules(arguments.init)).config  # whole: a damaged file is told now
    if config.model != shape:
        raise ValueError(f"--init {arguments.init} is for another model: {config}")
    for name, value in asked.items():
        if value != getattr(config, name):
            raise ValueError(
                f"--{name.replace('_', '-')} {value} with --init {arguments.init}, whose modules "
                f"have {getattr(config, name)}"
            )
    return config


def _modules(arguments: argparse.Namespace, model: Any, config: LookaheadConfig) -> Any:
    """New modules, or those of ``--init``, in float32."""
    import torch

    from ..integrations.transformers.weights import find_modules
    from ..lookahead import LookaheadModules, load_modules

    if arguments.init is not None:
        return load_modules(find_modules(arguments.init)).float()
    modules = LookaheadModules(config)
    std = float(model.get_input_embeddings().weight.detach().float().std())
    modules.reset_parameters(std, torch.Generator().manual_seed(arguments.seed))
    return modules


def _samples(arguments: argparse.Namespace, files: ModelFiles, split: str) -> Any:
    """The data that ``--data`` names, read and checked.

    Raises:
        OSError: a file cannot be read.
        ValueError: data that cannot be trained on; held-out samples are wanted from data that has
            no such split.
    """
    from ..training.data import JsonlSamples, TextSamples, WithoutResponses

    tokenizer = files.tokenizer
    if arguments.kinds and arguments.data != "recipe":
        raise ValueError("--kinds needs --data recipe")
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
        samples = JsonlSamples(
            arguments.data, tokenizer, arguments.seed, vocabulary=files.config.vocab_size
        )
    return WithoutResponses(samples) if arguments.responses == "model" else samples
