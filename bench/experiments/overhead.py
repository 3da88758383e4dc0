"""Time of each policy's whole prefill, beside the prefill that evicts nothing (paper figure 2)."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import machine
from bench.clock import WallClock, seconds_of
from bench.experiments.subject import Subject
from bench.store import Store
from lookaheadkv_kernels.evaluation.ruler import RulerTask
from lookaheadkv_kernels.integrations.transformers import Eviction
from lookaheadkv_kernels.policies import FullCache, Policy

TASK = "niah_single_2"


def run(spec: dict[str, Any], folder: Path, subject: Subject) -> None:
    """Time every policy on every prompt, in turn: the machine is in the same states for all."""
    facts = {**subject.facts(), **machine.host(), "weights_sha256": subject.weights_sha256()}
    store = Store(folder / "overhead.json", {**facts, **spec, "task": TASK})
    task = RulerTask(TASK, subject.tokenizer, seed=0)
    policies: dict[str, Policy] = {"full": FullCache(), **subject.policies(spec["policies"])}
    for length in spec["lengths"]:
        for budget in spec["budgets"]:
            for index in range(spec["prompts"]):
                name = f"{length} {budget} {index}"
                ids = torch.tensor([task.sample(length, index).prompt_ids])
                store.once(name, partial(_seconds, subject, policies, ids, budget, spec["runs"]))


def _seconds(
    subject: Subject, policies: dict[str, Policy], ids: torch.Tensor, budget: int, runs: int
) -> dict[str, float]:
    """The best of each policy's runs. Every run has another order, so that a policy does not always
    follow the same one, nor find the same data in the CPU's caches.
    """
    found, clock = dict.fromkeys(policies, math.inf), WallClock(subject.model.device)
    for run in range(runs):
        for name in in_turn(list(policies), run):
            eviction = Eviction(subject.model, policies[name])
            call = partial(eviction.prefill, ids, budget=budget)
            found[name] = min(seconds_of(clock, call), found[name])
    return found


def in_turn(names: list[str], turn: int) -> list[str]:
    """The names, rotated by the turn; every second time backwards."""
    first = turn // 2 % len(names)
    order = names[first:] + names[:first]
    return order[::-1] if turn % 2 else order
