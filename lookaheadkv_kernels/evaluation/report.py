"""Metrics of a result folder, its table and its picture."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..lookahead.files import write_atomically
from .records import Key

METRICS = "metrics.json"
PLOT = "accuracy.png"


def _mean(values: list[float]) -> float:
    # Exactly rounded, so that the order of the samples does not matter.
    return math.fsum(values) / len(values)


def _percent(scores: list[float]) -> float | None:
    return 100 * _mean(scores) if scores else None


def metrics_of(records: dict[Key, dict[str, Any]], expected: int) -> dict[str, Any]:
    """Means for every cell (task, length, policy, budget), and over tasks.

    Scores are in percent; samples that nobody could score are counted, and left out of them. There
    are no times: metrics depend on the predictions alone.

    Args:
        records: predictions, in the order of their keys.
        expected: how many there will be in the end.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for key, record in records.items():
        groups.setdefault((key.task, key.length, key.policy, key.budget), []).append(record)
    cells = []
    for (task, length, policy, budget), members in groups.items():
        cell = {"task": task, "length": length, "policy": policy, "budget": budget}
        cell |= {
            "samples": len(members),
            "unscored": sum(member["score"] is None for member in members),
            "score": _percent([m["score"] for m in members if m["score"] is not None]),
        }
        names = sorted({name for member in members for name in member.get("measures", {})})
        for name in names:
            values = [m["measures"][name] for m in members if name in m.get("measures", {})]
            cell[name] = _mean(values)
        cells.append(cell)
    over_tasks: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        if cell["score"] is None:
            continue
        over_tasks.setdefault((cell["length"], cell["policy"], cell["budget"]), []).append(cell)
    averages = [
        {
            "length": length,
            "policy": policy,
            "budget": budget,
            "tasks": len(members),
            "score": _mean([member["score"] for member in members]),
        }
        for (length, policy, budget), members in over_tasks.items()
    ]
    return {
        "complete": len(records) >= expected,
        "predictions": len(records),
        "expected": expected,
        "cells": cells,
        "averages": averages,
    }


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Write ``metrics.json`` atomically."""
    write_atomically(folder / METRICS, (json.dumps(metrics, indent=1) + "\n").encode())


def _order(cell: dict[str, Any]) -> tuple[Any, ...]:
    budget = cell["budget"]
    return cell["length"], cell["policy"] != "full", budget is not None, budget or 0, cell["policy"]


def table(metrics: dict[str, Any]) -> str:
    """Text table with a row per length, policy and budget, and a column per task."""
    tasks = sorted({cell["task"] for cell in metrics["cells"]})
    scores = {
        (cell["length"], cell["policy"], cell["budget"], cell["task"]): cell["score"]
        for cell in metrics["cells"]
    }
    head = ["length", "policy", "budget", *tasks, "average"]
    rows = [head]
    for average in sorted(metrics["averages"], key=_order):
        place = (average["length"], average["policy"], average["budget"])
        found = [scores.get((*place, task)) for task in tasks]
        budget = "all" if average["budget"] is None else str(average["budget"])
        rows.append(
            [str(average["length"] or "-"), average["policy"], budget]
            + ["-" if score is None else f"{score:.1f}" for score in found]
            + [f"{average['score']:.1f}"]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Iterable[str], widths: list[int]) -> str:
    cells = [
        text.ljust(width) if column < 3 else text.rjust(width)
        for column, (text, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def write_plot(folder: Path, metrics: dict[str, Any]) -> None:
    """Write ``accuracy.png``: the average over tasks against the budget, one panel per length."""
    # Without pyplot: no global state and no display.
    from matplotlib.figure import Figure

    lengths = sorted({average["length"] for average in metrics["averages"]})
    figure = Figure(figsize=(4.2 * len(lengths) + 1.5, 4), layout="constrained")
    panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    policies = sorted({a["policy"] for a in metrics["averages"] if a["budget"] is not None})
    for panel, length in zip(panels, lengths, strict=True):
        here = [average for average in metrics["averages"] if average["length"] == length]
        # Counts and ratios share an axis: a budget below 1 is a ratio of the prompt.
        for number, policy in enumerate(policies):
            points = sorted(
                (a["budget"], a["score"])
                for a in here
                if a["policy"] == policy and a["budget"] is not None
            )
            if points:
                budgets, scores = zip(*points, strict=True)
                panel.plot(budgets, scores, "o-", ms=4, color=f"C{number}", label=policy)
        for average in here:
            if average["budget"] is None:
                panel.axhline(average["score"], ls="--", color="0.4", label=average["policy"])
        ticks = sorted({a["budget"] for a in here if a["budget"] is not None})
        if ticks:
            panel.set_xscale("log", base=2)
            panel.set_xticks(ticks, [str(tick) for tick in ticks])
            panel.set_xticks([], minor=True)
        panel.set(
            xlabel="budget, entries a head (below 1: ratio)",
            title=f"{length} tokens" if length else "",
        )
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("score, %")
    handles = {
        label: handle
        for panel in panels
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(handles.values()), list(handles), loc="outside right upper")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(folder / PLOT, buffer.getvalue())
