"""Trains variants of lookahead modules with the same effort, and measures them on held-out prompts.

Variants that learn from the same samples share each sample's prefill and ground truth; each variant
then adds at most 32 rows of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch

from bench import machine
from bench.experiments.subject import Subject
from bench.experiments.variants import Variant, samples_of, variants_of
from bench.store import Store
from lookaheadkv_kernels.evaluation.measures import group_mean, kept_mass, mean_over_layers
from lookaheadkv_kernels.integrations.transformers.shared_prefill import SharedPrefill
from lookaheadkv_kernels.lookahead import LookaheadModules
from lookaheadkv_kernels.policies import LookaheadPolicy, Policy, SnapKV
from lookaheadkv_kernels.training.checkpoint import State, latest, load_checkpoint, save_checkpoint
from lookaheadkv_kernels.training.config import TrainingConfig
from lookaheadkv_kernels.training.recipe import Recipe
from lookaheadkv_kernels.training.schedule import learning_rate
from lookaheadkv_kernels.training.step import Target, ground_truth, lookahead_loss

HELD_OUT_SEED = 1000  # training has seed 0


class Trainee:
    """One variant under training; goes on from its newest checkpoint."""

    def __init__(
        self, variant: Variant, folder: Path, model: Any, config: TrainingConfig, facts: Any
    ) -> None:
        self.variant, self.config = variant, config
        self.folder = folder / variant.name
        self.modules = variant.modules(model).to(model.device)
        self.optimizer = torch.optim.Adam(
            self.modules.parameters(), lr=config.learning_rate, betas=config.betas
        )
        self.losses: list[float] = []
        self._record = {**facts, **config.to_dict(), "variant": variant.name}
        if (path := latest(self.folder)) is not None:
            state = load_checkpoint(path, self.modules, self.optimizer)
            if state.config != self._record:
                raise ValueError(f"{path} was made with {state.config}, not with {self._record}")
            self.losses = state.losses

    def learn(self, model: Any, target: Target) -> float:
        """Add a sample's gradient; returns its loss."""
        loss = lookahead_loss(model, self.modules, target) / self.config.batch_size
        loss.backward()
        return float(loss.detach())

    def step(self, loss: float) -> None:
        """One optimizer step; saves a checkpoint every ``checkpoint_every`` steps."""
        torch.nn.utils.clip_grad_norm_(self.modules.parameters(), self.config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(len(self.losses), self.config)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss)
        done = len(self.losses)
        if done % self.config.checkpoint_every == 0 or done == self.config.steps:
            state = State(done, self.losses, [], self._record)
            save_checkpoint(self.folder, self.modules, self.optimizer, state)


def train_together(trainees: Sequence[Trainee], model: Any, tokenizer: Any) -> None:
    """Train variants on the same data to the end. Those that are behind catch up first."""
    config = trainees[0].config
    first = min(len(trainee.losses) for trainee in trainees)
    samples = islice(samples_of(trainees[0].variant, tokenizer), first * config.batch_size, None)
    for step in range(first, config.steps):
        behind = [trainee for trainee in trainees if len(trainee.losses) == step]
        losses = [0.0] * len(behind)
        for prompt, response in islice(samples, config.batch_size):
            target = ground_truth(model, prompt, response, config.max_response)
            for place, trainee in enumerate(behind):
                losses[place] += trainee.learn(model, target)
        for trainee, loss in zip(behind, losses, strict=True):
            trainee.step(loss)
        figures = ", ".join(
            f"{trainee.variant.name} {loss:.3f}"
            for trainee, loss in zip(behind, losses, strict=True)
        )
        print(f"step {step + 1} of {config.steps}: {figures}", flush=True)


def run(spec: dict[str, Any], folder: Path, subject: Subject) -> None:
    """Train what is not trained, measure what is not measured."""
    subject.model.requires_grad_(False)
    config = TrainingConfig(**spec["training"])
    variants = variants_of(spec)
    store = Store(folder / "sweep.json", {**subject.facts(), **spec})
    trained: dict[str, LookaheadModules] = {}
    for _, group in groupby(sorted(variants, key=_data), key=_data):
        trainees = [
            Trainee(variant, folder, subject.model, config, subject.facts()) for variant in group
        ]
        train_together(trainees, subject.model, subject.tokenizer)
        for trainee in trainees:
            trained[trainee.variant.name] = trainee.modules.eval().requires_grad_(False)
            store.once(f"losses {trainee.variant.name}", partial(list, trainee.losses))
    store.once("machine", machine.host)

    def measure(recipe: Recipe, index: int) -> dict[str, dict[str, float]]:
        prompt = recipe[index].prompt_ids
        in_order = {variant.name: trained[variant.name] for variant in variants}
        return held_out(subject.model, prompt, in_order, spec["budgets"], config.max_response)

    for kind, options in spec["held_out"].items():
        recipe = Recipe(subject.tokenizer, seed=HELD_OUT_SEED, split="heldout", skew=1.0, **options)
        for index in range(spec["prompts"]):
            store.once(f"held-out {kind} {index}", partial(measure, recipe, index))


def _data(variant: Variant) -> tuple[int, str]:
    return variant.data


@torch.no_grad()
def held_out(
    model: Any,
    prompt_ids: list[int],
    trained: dict[str, LookaheadModules],
    budgets: Sequence[int],
    max_response: int,
) -> dict[str, dict[str, float]]:
    """KL, and kept mass at the budgets, of every variant and of SnapKV on one prompt.

    The ground truth is what the model's own greedy answer attends to from the full cache.
    """
    target = ground_truth(model, prompt_ids, None, max_response)
    policies: dict[str, Policy] = {"snapkv": SnapKV()}
    for name, modules in trained.items():
        policies[name] = LookaheadPolicy(modules)
    cells = [(policy, budget) for policy in policies.values() for budget in budgets]
    shared = SharedPrefill(model, torch.tensor([prompt_ids], device=model.device), cells)
    heads = model.config.num_key_value_heads
    found: dict[str, dict[str, float]] = {}
    for name, policy in policies.items():
        found[name] = {}
        if name in trained:
            found[name]["kl"] = float(lookahead_loss(model, trained[name], target))
        for budget in budgets:
            cache = shared.cut(policy, budget)
            found[name][f"mass {budget}"] = mean_over_layers(
                [
                    kept_mass(group_mean(scores, heads), layer.positions()[0])
                    for scores, layer in zip(target.scores, cache.layers, strict=True)
                ]
            )
    return found
