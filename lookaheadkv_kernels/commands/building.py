"""Makes the data sources, judges and policies that a subcommand's options name."""

from __future__ import annotations

import argparse
import os
from typing import Any


def sources_of(arguments: argparse.Namespace) -> Any:
    """Where the tasks find their data."""
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
    judge, tokenizer = load(arguments.judge_model, dtype=dtype, device=device_of(arguments.device))
    return LocalJudge(judge, tokenizer, name=arguments.judge_model)


def device_of(device: str) -> str:
    """The device of this process: under torchrun each one takes its own GPU."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and launched() else device


def launched() -> bool:
    """Whether torchrun started this process."""
    return "LOCAL_RANK" in os.environ


def policies_of(arguments: argparse.Namespace, model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The policies, and which weights they use, for the record of the run.

    Raises:
        FileNotFoundError: the modules are not there.
        ValueError: they are for another model, or a draft model is missing.
    """

    import torch

    from ..integrations.transformers.loading import load
    from ..integrations.transformers.weights import find_modules
    from ..lookahead import ModelShape, load_modules
    from ..lookahead.files import weights_sha256
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
            facts["weights_sha256"] = weights_sha256(folder)
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
