"""The loss curve of a run, as CSV and as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ..lookahead.files import write_atomically


def write_curve(
    folder: Path, losses: Sequence[float], evaluations: Sequence[tuple[int, float]]
) -> None:
    """``loss.csv`` (step, training KL, held-out KL) and ``loss.png`` below ``folder``."""
    held_out = dict(evaluations)
    rows = [
        f"{step},{loss:.6f},{held_out[step]:.6f}" if step in held_out else f"{step},{loss:.6f},"
        for step, loss in enumerate(losses, start=1)
    ]
    text = "\n".join(["step,training_kl,held_out_kl", *rows]) + "\n"
    write_atomically(folder / "loss.csv", text.encode())
    write_atomically(folder / "loss.png", picture(losses, evaluations))


def picture(losses: Sequence[float], evaluations: Sequence[tuple[int, float]]) -> bytes:
    """The curve as a PNG file's bytes."""
    # Without pyplot: no global state and no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(range(1, len(losses) + 1), losses, lw=0.8, alpha=0.6, label="training")
    if evaluations:
        steps, values = zip(*evaluations, strict=True)
        axes.plot(steps, values, "o-", ms=3, label="held out")
    axes.set(xlabel="optimizer step", ylabel="KL to the ground truth", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
