"""Makes the data sources, judges and policies that a subcommand's options name.

Everything here is read and checked before the model is loaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from .model import ModelFiles


class DeferredJudge:
    """A judge that is a model: known by its configuration and tokenizer until it is needed."""

    def __init__(self, files: ModelFiles) -> None:
        self.model = files.name
        self._files = files
        self._judge: Any = None

    def load(self) -> None:
        """Load the model, once."""
        from ..evaluation.judge import LocalJudge

        if self._judge is None:
            model = self._files.load()
            self._judge = LocalJudge(model, self._files.tokenizer, name=self.model)

    def __call__(self, messages: Sequence[dict[str, str]]) -> str:
        """Ask the model."""
        self.load()
        verdict: str = self._judge(messages)
        return verdict


def sources_of(arguments: argparse.Namespace) -> Any:
    """Where the tasks find their data."""
    from ..evaluation.catalog import Sources

    names = ("haystack", "words", "squad", "hotpotqa", "longbench", "longproc", "mtbench")
    return Sources(**{name: getattr(arguments, name) for name in names}, judge=_judge(arguments))


def _judge(arguments: argparse.Namespace) -> Any:
    """An endpoint, a model that is not loaded yet, or None.

    Raises:
        ValueError: there is no such model, or an endpoint without the name of a model.
    """
    from ..evaluation.judge import EndpointJudge

    if arguments.judge_url is not None:
        if arguments.judge_model is None:
            raise ValueError("--judge-url needs --judge-model")
        return EndpointJudge(arguments.judge_url, arguments.judge_model)
    if arguments.judge_model is None:
        return None
    return DeferredJudge(
        ModelFiles(
            arguments.judge_model,
            dtype=arguments.dtype,
            device=arguments.device,
            attended=False,
        )
    )


def check_judge(judge: Any) -> None:
    """See that an endpoint is there, before answers are written for it.

    Raises:
        ConnectionError: it cannot be reached.
    """
    from ..evaluation.judge import EndpointJudge

    if isinstance(judge, EndpointJudge):
        judge.check()


def load_judge(judge: Any) -> None:
    """Load a judge that is a model: what it lacks is known before there are answers."""
    if isinstance(judge, DeferredJudge):
        judge.load()


class Policies:
    """The policies of a subcommand, checked as far as can be without a model.

    Args:
        arguments: the subcommand's options.
        files: of the model.

    Attributes:
        facts: which weights they use, for the record of the run.

    Raises:
        FileNotFoundError: the modules are not there.
        ValueError: modules for another model, or no draft model for a policy that needs one.
    """

    def __init__(self, arguments: argparse.Namespace, files: ModelFiles) -> None:
        from ..integrations.transformers.weights import find_modules
        from ..lookahead import ModelShape, load_modules
        from ..lookahead.files import weights_sha256

        self.names = list(dict.fromkeys(arguments.policy))
        self.facts: dict[str, Any] = {}
        self._modules: Any = None
        self._draft: ModelFiles | None = None
        if "lookahead" in self.names:
            folder = find_modules(arguments.weights or arguments.model)
            self._modules = load_modules(folder)
            shape = ModelShape.of(files.config)
            if self._modules.config.model != shape:
                raise ValueError(
                    f"{folder} is for {self._modules.config.model}, the model is {shape}"
                )
            self.facts["weights_sha256"] = weights_sha256(folder)
        if "speckv" in self.names:
            if arguments.draft_model is None:
                raise ValueError("policy speckv needs --draft-model")
            self._draft = ModelFiles(
                arguments.draft_model,
                dtype=arguments.dtype,
                device=arguments.device,
                attended=False,
            )
            self.facts["draft_model"] = arguments.draft_model

    def pinned(self) -> dict[str, int]:
        """How many entries each policy keeps in any case: no budget may be smaller."""
        from torch import nn

        policies = self._made(nn.Identity(), self._modules)
        return {
            name: policy.window + getattr(policy, "num_sink", 0) + getattr(policy, "num_recent", 0)
            for name, policy in policies.items()
        }

    def make(self, model: Any) -> dict[str, Any]:
        """The policies by their names, for the model that has been loaded."""
        from ..integrations.transformers.devices import place_modules

        modules = None
        if self._modules is not None:
            modules = place_modules(self._modules, model)
        return self._made(None if self._draft is None else self._draft.load(), modules)

    def _made(self, draft: Any, modules: Any) -> dict[str, Any]:
        from ..policies import make_policy

        options: dict[str, dict[str, Any]] = {
            "lookahead": {"modules": modules},
            "speckv": {"draft_model": draft},
        }
        return {name: make_policy(name, **options.get(name, {})) for name in self.names}


def check_fit(
    pinned: dict[str, int], budgets: Sequence[int | float], num_prompt: int, what: str
) -> None:
    """Refuse a budget that is smaller than what a policy pins of a prompt that does not fit it.

    Args:
        pinned: entries that each policy keeps in any case.
        budgets: of the run.
        num_prompt: tokens of the prompt.
        what: the prompt, for the error text.

    Raises:
        ValueError: names the policy, the budget and the prompt.
    """
    from ..policies.budget import budget_of

    for name, least in pinned.items():
        for budget in budgets:
            entries = budget_of(budget, 0, num_prompt)
            if name != "full" and entries < min(least, num_prompt):
                raise ValueError(
                    f"budget {budget} keeps {entries} of the {num_prompt} tokens of {what}, but "
                    f"policy {name} keeps {least} in any case"
                )
