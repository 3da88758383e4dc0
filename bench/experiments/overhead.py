"""Time of each policy's whole prefill, beside the prefill that evicts nothing (paper figure 2)."""

from __future__ import annotations

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
                store.once(name, partial(_seconds, subject, policies, ids, budget))
                print(name, store.data["results"][name], flush=True)


def _seconds(
    subject: Subject, policies: dict[str, Policy], ids: torch.Tensor, budget: int
) -> dict[str, float]:
    """Of each policy, the better of two runs."""
    found: dict[str, float] = {}
    for _ in range(2):
        for name, policy in policies.items():
            eviction = Eviction(subject.model, policy)
            start = time.perf_counter()
            eviction.prefill(ids, budget=budget)
            seconds = time.perf_counter() - start
            found[name] = min(seconds, found.get(name, seconds))
    return found
