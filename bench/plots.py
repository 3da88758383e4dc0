"""The pictures of docs/performance.md, from the JSON of real runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.pictures import log_ticks, panel, save
from bench.text import length_of

Run = dict[str, Any]
Result = dict[str, Any]
WHOLE = "score_and_evict"
LEAST_LENGTHS = 2  # of a curve


def _short(result: Result) -> str:
    """A label that fits beside a bar."""
    models = result["models"].split("+")
    more = "+" if len(models) > 1 else ""
    budget = "" if result["budget"] is None else f", {result['budget']}"
    return f"{models[0]}{more}, {result['dtype']}, {length_of(result['num_prompt'])}{budget}"


def ratios(run: Run) -> Figure | None:
    """How many times as long as our whole op its peers take."""
    results = [result for result in run["results"] if result["room"] == WHOLE]
    if not results:
        return None
    peers = list(dict.fromkeys(name for result in results for name in result["peers"]))
    figure, axes = panel(8, 1.5 + 0.75 * len(results))
    thickness = 0.8 / len(peers)
    for number, name in enumerate(peers):
        rows = [
            (at, result["peers"][name])
            for at, result in enumerate(results)
            if name in result["peers"]
        ]
        values = [peer["ratio"] for _, peer in rows]
        errors = [
            [peer["ratio"] - peer["low"] for _, peer in rows],
            [peer["high"] - peer["ratio"] for _, peer in rows],
        ]
        axes.barh(
            [at + number * thickness for at, _ in rows],
            values,
            thickness,
            xerr=errors,
            label=name,
        )
    axes.set_yticks(
        [at + 0.4 - thickness / 2 for at in range(len(results))],
        [f"{_short(result)} [{result['backend']}]" for result in results],
    )
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times as long as score_and_evict (95 %)")
    figure.legend(loc="outside upper center", ncols=len(peers))
    return figure


def floors(run: Run) -> Figure:
    """How near each room comes to its floor."""
    rooms = list(dict.fromkeys(result["room"] for result in run["results"]))
    figure, axes = panel(8, 4.5)
    for room in rooms:
        results = [result for result in run["results"] if result["room"] == room]
        axes.scatter(
            [result["num_prompt"] for result in results],
            [result["seconds"] / result["floor_seconds"] for result in results],
            label=room,
            alpha=0.7,
        )
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log")
    log_ticks(axes, sorted({result["num_prompt"] for result in run["results"]}), length_of)
    axes.set_xlabel("prompt keys")
    axes.set_ylabel("time / floor")
    axes.legend()
    return figure


def _series(results: list[Result]) -> list[Result]:
    """The results of the shape, dtype and budget that were measured at the most lengths."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        key = (result["models"], result["dtype"], result["budget"], result["backend"])
        groups.setdefault(key, []).append(result)
    longest = max(groups.values(), key=lambda group: len(group))
    return sorted(longest, key=lambda result: int(result["num_prompt"]))


def growth(run: Run) -> Figure | None:
    """Time over the length of the prompt, ours and the peers'."""
    title = "time of score_and_evict and its peers"
    return _over_length(run, "seconds", "seconds", lambda value: value, title)


def memory(run: Run) -> Figure | None:
    """Extra memory over the length of the prompt, ours and the peers'."""
    label = "MiB beyond the inputs, results included"
    return _over_length(
        run, "peak_extra_bytes", label, lambda value: value / 2**20, "peak extra memory"
    )


def _over_length(
    run: Run, field: str, label: str, unit: Callable[[float], float], title: str
) -> Figure | None:
    results = [result for result in run["results"] if result["room"] == WHOLE]
    series = _series(results) if results else []
    if len(series) < LEAST_LENGTHS:
        return None
    figure, axes = panel(8, 4.5)
    lengths = [result["num_prompt"] for result in series]
    axes.plot(lengths, [unit(result[field]) for result in series], "o-", label="ours", linewidth=2)
    for name in series[0]["peers"]:
        having = [result for result in series if name in result["peers"]]
        axes.plot(
            [result["num_prompt"] for result in having],
            [unit(result["peers"][name][field]) for result in having],
            "o--",
            label=name,
        )
    axes.set_yscale("log")
    axes.set_xlabel("prompt keys")
    axes.set_ylabel(label)
    first = series[0]
    axes.set_title(f"{title}: {first['models']}, {first['dtype']}, budget {first['budget']}")
    log_ticks(axes, lengths, length_of)
    axes.legend()
    return figure


def first_token(run: Run) -> Figure:
    """Overhead of every method over the forward."""
    lengths = list(run["results"])
    names = [name for name in run["results"][lengths[0]]["methods"] if name != "forward"]
    figure, axes = panel(8, 4.5)
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        rows = [run["results"][length]["methods"][name]["overhead"] for length in lengths]
        axes.bar(
            [at + number * width for at in range(len(lengths))],
            [row["percent"] for row in rows],
            width,
            yerr=[
                [row["percent"] - row["percent_low"] for row in rows],
                [row["percent_high"] - row["percent"] for row in rows],
            ],
            label=name,
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(
        [at + 0.4 - width / 2 for at in range(len(lengths))],
        [f"{int(length):,} tokens" for length in lengths],
    )
    axes.set_yscale("symlog", linthresh=10)
    axes.set_ylabel("% over the forward (95 %)")
    figure.legend(loc="outside upper center", ncols=4)
    return figure


def draw(run: Run, folder: Path, stem: str) -> list[Path]:
    """Draw every picture of a run as a PNG file; returns the files."""
    kinds: dict[str, dict[str, Callable[[Run], Figure | None]]] = {
        "suite": {"ratios": ratios, "floors": floors, "growth": growth, "memory": memory},
        "ttft": {"first-token": first_token},
    }
    paths = []
    for name, make in kinds.get(run["kind"], {}).items():
        figure = make(run)
        if figure is not None:
            paths.append(folder / f"{stem}--{name}.png")
            save(figure, paths[-1], dpi=100)
    return paths
