"""Time of each policy's whole prefill, beside the prefill that evicts nothing (paper figure 2)."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.experiments.store import Store
from bench.experiments.subject import Subject, machine
from lookaheadkv_kernels.evaluation.ruler import RulerTask
from lookaheadkv_kernels.integrations.transformers import Eviction
from lookaheadkv_kernels.policies import FullCache, Policy

TASK = "niah_single_2"


def run(spec: dict[str, Any], folder: Path, subject: Subject) -> None:
    """Time every policy on every prompt, in turn: all meet the machine in the same states."""
    facts = {**subject.facts(), **machine(), "weights_sha256": subject.weights_sha256()}
    store = Store(folder / "overhead.json", {**facts, **spec, "task": TASK})
    task = RulerTask(TASK, subject.tokenizer, seed=0)
    policies: dict[str, Policy] = {"full": FullCache(), **subject.policies(spec["policies"])}
    for length in spec["lengths"]:
        for budget in spec["budgets"]:
            for index in range(spec["prompts"]):
                name = f"{length} {budget} {index}"
                ids = torch.tensor([task.sample(length, index).prompt_ids])
                store.once(name, partial(_seconds, subject, policies, ids, budget, spec["runs"]))
                print(name, store.data["results"][name], flush=True)


def _seconds(
    subject: Subject, policies: dict[str, Policy], ids: torch.Tensor, budget: int, runs: int
) -> dict[str, float]:
    """Of each policy, the best of its runs. Each run has another order: whom a policy follows, and
    what that one left in the caches, is not always the same.
    """
    found = dict.fromkeys(policies, math.inf)
    for run in range(runs):
        for name in in_turn(list(policies), run):
            eviction = Eviction(subject.model, policies[name])
            start = time.perf_counter()
            eviction.prefill(ids, budget=budget)
            found[name] = min(time.perf_counter() - start, found[name])
    return found


def in_turn(names: list[str], turn: int) -> list[str]:
    """Names from another beginning, and every second time backwards."""
    first = turn // 2 % len(names)
    order = names[first:] + names[:first]
    return order[::-1] if turn % 2 else order
