"""Condenses result folders to the small data in `docs/results/`, from which the page is made."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lookaheadkv_kernels.evaluation.records import read_predictions
from lookaheadkv_kernels.evaluation.ruler.metrics import string_match_all

ENVIRONMENT = ("lookaheadkv_kernels", "transformers", "torch", "device")


def complete(folder: Path, spec: dict[str, Any]) -> bool:
    """Whether an experiment has been run to its end."""
    if spec["kind"] == "accuracy":
        path = folder / "metrics.json"
        return path.is_file() and bool(json.loads(path.read_text())["complete"])
    path = folder / ("overhead.json" if spec["kind"] == "overhead" else "sweep.json")
    if not path.is_file():
        return False
    results = json.loads(path.read_text())["results"]
    if spec["kind"] == "overhead":
        return bool(len(results) == len(spec["lengths"]) * len(spec["budgets"]) * spec["prompts"])
    measured = sum(name.startswith("held-out ") for name in results)
    return bool(measured == len(spec["held_out"]) * spec["prompts"])


def condense(folder: Path, kind: str) -> dict[str, Any]:
    """The small data of one experiment."""
    return {"accuracy": accuracy, "overhead": overhead, "sweep": sweep}[kind](folder)


def accuracy(folder: Path) -> dict[str, Any]:
    """Means and standard errors of every cell, in percent; the full cache's beside chance.

    Chance is what the full cache's answers score against the references of the next sample.
    """
    config = json.loads((folder / "config.json").read_text())
    groups: dict[tuple[str, int, str, Any], list[dict[str, Any]]] = {}
    for key, record in read_predictions(folder).items():
        groups.setdefault((key.task, key.length, key.policy, key.budget), []).append(record)
    cells, tasks = [], []
    for (task, length, policy, budget), records in groups.items():
        scores = [100 * record["score"] for record in records]
        cells.append([task, length, policy, budget, *_mean_and_error(scores)])
        if policy == "full":
            tasks.append([task, length, *_against_chance(records)])
    return {
        "facts": {**config["facts"], "samples": config["grid"]["samples"]},
        "environment": _environment(config["environment"]),
        "fields": ["task", "length", "policy", "budget", "score", "standard error"],
        "cells": cells,
        "task_fields": ["task", "length", "chance", "above chance", "its standard error"],
        "tasks": tasks,
    }


def _environment(found: dict[str, Any]) -> dict[str, Any]:
    kept = {name: found[name] for name in ENVIRONMENT if name in found}
    device = found["device"]
    return {**kept, "machine": found.get("CPU" if device == "cpu" else device, device)}


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return round(statistics.fmean(values), 3), round(error, 3)


def _against_chance(records: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """Chance, how far above it the answers are, and the standard error of that, in percent."""
    others = [*records[1:], *records[:1]]
    chance = [
        100 * string_match_all(record["answers"][0], other["references"])
        for record, other in zip(records, others, strict=True)
    ]
    above = [100 * record["score"] - c for record, c in zip(records, chance, strict=True)]
    return round(statistics.fmean(chance), 3), *_mean_and_error(above)


def overhead(folder: Path) -> dict[str, Any]:
    """How much longer each policy's prefill takes than the plain one: medians and quartiles over
    prompts.
    """
    data = json.loads((folder / "overhead.json").read_text())
    places: dict[tuple[int, int], list[dict[str, float]]] = {}
    for name, seconds in data["results"].items():
        length, budget, _ = map(int, name.split())
        places.setdefault((length, budget), []).append(seconds)
    rows = []
    for (length, budget), prompts in places.items():
        for policy in prompts[0]:
            more = [seconds[policy] - seconds["full"] for seconds in prompts]
            share = [100 * (seconds[policy] / seconds["full"] - 1) for seconds in prompts]
            middle = [statistics.median(s[policy] for s in prompts), statistics.median(more)]
            rows.append([length, budget, policy, *(round(v, 4) for v in middle)])
            rows[-1] += [round(v, 2) for v in _quartiles(share)]
    return {
        "facts": data["facts"],
        "fields": [
            *("length", "budget", "policy", "seconds", "more"),
            *("more, %: lower quartile", "median", "upper quartile"),
        ],
        "rows": rows,
    }


def _quartiles(values: Sequence[float]) -> list[float]:
    if len(values) == 1:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def sweep(folder: Path) -> dict[str, Any]:
    """Means over the held-out prompts of each kind."""
    data = json.loads((folder / "sweep.json").read_text())
    facts, results = data["facts"], data["results"]
    rows = []
    for kind in facts["held_out"]:
        found = [results[f"held-out {kind} {index}"] for index in range(facts["prompts"])]
        for variant in found[0]:
            means = {
                figure: round(statistics.fmean(prompt[variant][figure] for prompt in found), 5)
                for figure in found[0][variant]
            }
            rows.append([kind, variant, means])
    losses = {
        name.removeprefix("losses "): [round(loss, 5) for loss in value]
        for name, value in results.items()
        if name.startswith("losses ")
    }
    return {
        "facts": facts,
        "machine": results["machine"],
        "fields": ["held-out", "variant", "means"],
        "rows": rows,
        "losses": losses,
    }


def average(scores: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Mean over tasks of (score, standard error), and its standard error."""
    pairs = list(scores)
    mean = statistics.fmean(score for score, _ in pairs)
    return mean, math.sqrt(sum(error**2 for _, error in pairs)) / len(pairs)


class Scores:
    """Look-up of the cells of accuracy experiments.

    Args:
        experiments: condensed; of one model and weights.
    """

    def __init__(self, *experiments: dict[str, Any]) -> None:
        self._cells: dict[tuple[str, int, str, Any], tuple[float, float]] = {}
        self._above: dict[tuple[str, int], bool] = {}
        for data in experiments:
            for task, length, policy, budget, score, error in data["cells"]:
                self._cells[task, length, policy, budget] = score, error
            for task, length, _, above, error in data["tasks"]:
                self._above[task, length] = above > 2 * error
        self.lengths = sorted({length for _, length in self._above})
        self.tasks = sorted({task for task, _ in self._above})
        # In the order of the experiment, the full cache apart.
        names = dict.fromkeys(policy for _, _, policy, _ in self._cells if policy != "full")
        self.policies = sorted(names, key=lambda name: (name != "lookahead", name))
        self.budgets = sorted({b for _, _, _, b in self._cells if b is not None})

    def solved(self, *lengths: int) -> list[str]:
        """Tasks that the full cache solves above chance at all of these lengths."""
        return [t for t in self.tasks if all(self._above.get((t, n), False) for n in lengths)]

    def has(self, length: int, policy: str, budget: Any) -> bool:
        """Whether a policy was run there."""
        return any(key[1:] == (length, policy, budget) for key in self._cells)

    def cell(self, task: str, length: int, policy: str, budget: Any) -> tuple[float, float]:
        """Score and standard error."""
        return self._cells[task, length, policy, budget]

    def mean(
        self, length: int, policy: str, budget: Any, tasks: Sequence[str]
    ) -> tuple[float, float]:
        """Over tasks, of which there is at least one: score and standard error."""
        return average(self.cell(task, length, policy, budget) for task in tasks)
