"""The plots of `docs/results.md`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.experiments.condense import Scores
from lookaheadkv_kernels.lookahead.files import write_atomically

MARKERS = "os^vDPX*<>"


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    # No version or time in the file: the same data give the same bytes.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def _ticks(panel: Any, values: Sequence[float]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_xticks(list(values), [str(value) for value in values])
    panel.set_xticks([], minor=True)


def _style(number: int) -> dict[str, Any]:
    return {"color": f"C{number}", "marker": MARKERS[number % len(MARKERS)], "ms": 5}


def accuracy_plot(path: Path, scores: Scores) -> None:
    """Mean over the solved tasks against the budget, a panel for every length that has some."""
    lengths = [length for length in scores.lengths if scores.solved(length)]
    figure = Figure(figsize=(4.2 * len(lengths) + 1.5, 4), layout="constrained")
    panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    for panel, length in zip(panels, lengths, strict=True):
        tasks = scores.solved(length)
        for number, policy in enumerate(scores.policies):
            budgets = [b for b in scores.budgets if scores.has(length, policy, b)]
            found = [scores.mean(length, policy, budget, tasks) for budget in budgets]
            means, errors = zip(*found, strict=True)
            panel.errorbar(budgets, means, errors, capsize=2, label=policy, **_style(number))
        full, _ = scores.mean(length, "full", None, tasks)
        panel.axhline(full, ls="--", color="0.4", label="full")
        _ticks(panel, scores.budgets)
        panel.set(xlabel="budget, entries a head", title=f"{length} tokens, {len(tasks)} tasks")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("score, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    _save(figure, path)


def context_plot(path: Path, scores: Scores, budget: int) -> None:
    """Mean over the tasks solved at all lengths against the length, at one budget."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    tasks = scores.solved(*scores.lengths)
    for number, policy in enumerate(["full", *scores.policies]):
        where = None if policy == "full" else budget
        lengths = [length for length in scores.lengths if scores.has(length, policy, where)]
        means, errors = zip(
            *(scores.mean(length, policy, where, tasks) for length in lengths), strict=True
        )
        style = {"color": "0.4", "ls": "--"} if policy == "full" else _style(number - 1)
        panel.errorbar(lengths, means, errors, capsize=2, label=policy, **style)
    _ticks(panel, scores.lengths)
    panel.set(xlabel="context, tokens", ylabel="score, %", title=f"budget {budget}")
    panel.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    _save(figure, path)


def overhead_plot(path: Path, scores: Scores, rows: Sequence[Any], budget: int) -> None:
    """Accuracy against what the eviction adds to the prefill, a panel for every length."""
    timed = {row[0] for row in rows}
    lengths = [length for length in scores.lengths if length in timed and scores.solved(length)]
    figure = Figure(figsize=(4.2 * len(lengths) + 1.5, 4), layout="constrained")
    panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    for panel, length in zip(panels, lengths, strict=True):
        more = {row[2]: row[5:] for row in rows if row[:2] == [length, budget]}
        tasks = scores.solved(length)
        for number, policy in enumerate(scores.policies):
            if policy in more:
                mean, error = scores.mean(length, policy, budget, tasks)
                low, middle, high = more[policy]
                panel.errorbar(
                    [middle],
                    [mean],
                    [error],
                    [[middle - low], [high - middle]],
                    ls="",
                    label=policy,
                    **_style(number),
                )
        panel.set_xscale("symlog", linthresh=1.0)
        panel.set(xlabel="time added to the prefill, %", title=f"{length} tokens, budget {budget}")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("score, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    _save(figure, path)


def lines_plot(
    path: Path,
    lines: dict[str, list[tuple[float, float]]],
    *,
    xlabel: str,
    ylabel: str,
) -> None:
    """A line for each name, over a logarithmic axis."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    for number, (name, points) in enumerate(lines.items()):
        xs, ys = zip(*points, strict=True)
        panel.plot(xs, ys, label=name, **_style(number))
    _ticks(panel, sorted({x for points in lines.values() for x, _ in points}))
    panel.set(xlabel=xlabel, ylabel=ylabel)
    panel.grid(alpha=0.3)
    panel.legend()
    _save(figure, path)


def bars_plot(path: Path, bars: dict[str, dict[str, float]], *, ylabel: str) -> None:
    """Groups of bars: group -> name -> height."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    names = list(next(iter(bars.values())))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        places = [group + (number - (len(names) - 1) / 2) * width for group in range(len(bars))]
        panel.bar(places, [group[name] for group in bars.values()], width, label=name)
    panel.set_xticks(range(len(bars)), list(bars))
    panel.set_ylabel(ylabel)
    panel.legend()
    _save(figure, path)
