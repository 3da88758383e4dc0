"""The plots of `docs/results.md`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.experiments.condense import Scores
from bench.pictures import log_ticks, panel, save

MARKERS = "os^vDPX*<>"
DPI = 110


def _style(number: int) -> dict[str, Any]:
    return {"color": f"C{number}", "marker": MARKERS[number % len(MARKERS)], "ms": 5}


@contextmanager
def _side_by_side(path: Path, lengths: Sequence[int]) -> Iterator[list[tuple[Any, int]]]:
    """A picture with one panel of scores per length, written at the end."""
    figure = Figure(figsize=(4.2 * len(lengths) + 1.5, 4), layout="constrained")
    panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    yield list(zip(panels, lengths, strict=True))
    for axes in panels:
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("score, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    save(figure, path, DPI)


def accuracy_plot(path: Path, scores: Scores) -> None:
    """Mean over the solved tasks against the budget, one panel per length that has some."""
    with _side_by_side(path, [n for n in scores.lengths if scores.solved(n)]) as panels:
        for axes, length in panels:
            tasks = scores.solved(length)
            for number, policy in enumerate(scores.policies):
                budgets = [b for b in scores.budgets if scores.has(length, policy, b)]
                found = [scores.mean(length, policy, budget, tasks) for budget in budgets]
                means, errors = zip(*found, strict=True)
                axes.errorbar(budgets, means, errors, capsize=2, label=policy, **_style(number))
            full, _ = scores.mean(length, "full", None, tasks)
            axes.axhline(full, ls="--", color="0.4", label="full")
            log_ticks(axes, scores.budgets)
            title = f"{length} tokens, {len(tasks)} tasks"
            axes.set(xlabel="budget, entries per head", title=title)


def context_plot(path: Path, scores: Scores, budget: int) -> None:
    """Mean over the tasks solved at all lengths against the length, at one budget."""
    figure, axes = panel(6, 4)
    tasks = scores.solved(*scores.lengths)
    for number, policy in enumerate(["full", *scores.policies]):
        where = None if policy == "full" else budget
        lengths = [length for length in scores.lengths if scores.has(length, policy, where)]
        means, errors = zip(
            *(scores.mean(length, policy, where, tasks) for length in lengths), strict=True
        )
        style = {"color": "0.4", "ls": "--"} if policy == "full" else _style(number - 1)
        axes.errorbar(lengths, means, errors, capsize=2, label=policy, **style)
    log_ticks(axes, scores.lengths)
    axes.set(xlabel="context, tokens", ylabel="score, %", title=f"budget {budget}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    save(figure, path, DPI)


def overhead_plot(path: Path, scores: Scores, rows: Sequence[Any], budget: int) -> None:
    """Accuracy against what the eviction adds to the prefill, one panel per length."""
    timed = {row[0] for row in rows}
    lengths = [length for length in scores.lengths if length in timed and scores.solved(length)]
    with _side_by_side(path, lengths) as panels:
        for axes, length in panels:
            more = {row[2]: row[5:] for row in rows if row[:2] == [length, budget]}
            tasks = scores.solved(length)
            for number, policy in enumerate(scores.policies):
                if policy not in more:
                    continue
                mean, error = scores.mean(length, policy, budget, tasks)
                low, middle, high = more[policy]
                spread = [[middle - low], [high - middle]]
                style = {"ls": "", "label": policy, **_style(number)}
                axes.errorbar([middle], [mean], [error], spread, **style)
            axes.set_xscale("symlog", linthresh=1.0)
            title = f"{length} tokens, budget {budget}"
            axes.set(xlabel="time added to the prefill, %", title=title)


def lines_plot(
    path: Path, lines: dict[str, list[tuple[float, float]]], *, xlabel: str, ylabel: str
) -> None:
    """One line per name, over a logarithmic axis."""
    figure, axes = panel(6, 4)
    for number, (name, points) in enumerate(lines.items()):
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, label=name, **_style(number))
    log_ticks(axes, sorted({x for points in lines.values() for x, _ in points}))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path, DPI)


def bars_plot(path: Path, bars: dict[str, dict[str, float]], *, ylabel: str) -> None:
    """Groups of bars: group -> name -> height."""
    figure, axes = panel(6, 4)
    names = list(next(iter(bars.values())))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        places = [group + (number - (len(names) - 1) / 2) * width for group in range(len(bars))]
        axes.bar(places, [group[name] for group in bars.values()], width, label=name)
    axes.set_xticks(range(len(bars)), list(bars))
    axes.set_ylabel(ylabel)
    axes.legend()
    save(figure, path, DPI)
