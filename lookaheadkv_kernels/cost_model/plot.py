"""The paper's figure 3: overhead ratio over context length, one line per method."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ..lookahead.files import write_atomically
from .ttft import Prediction

FORMATS = (".png", ".svg")


def check_path(path: Path) -> None:
    """Refuse an unknown picture format before anything is computed.

    Raises:
        ValueError: the suffix is none of :data:`FORMATS`.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"plot must end in {' or '.join(FORMATS)}, got {str(path)!r}")


def write_plot(path: Path, predictions: Sequence[Prediction], title: str) -> None:
    """Draw the predictions.

    Args:
        path: of a PNG or an SVG.
        predictions: every method at every context; the forward pass has no line.
        title: above the axes.

    Raises:
        ValueError: another suffix, or nothing but the forward pass.
    """
    check_path(path)
    lines: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        if prediction.method != "forward":
            lines.setdefault(prediction.method, []).append(prediction)
    if not lines:
        raise ValueError("plot needs a method besides forward")
    # Without pyplot: no global state and no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for method, points in lines.items():
        points = sorted(points, key=lambda point: point.context)
        contexts = [point.context for point in points]
        ratios = [100 * point.overhead_ratio for point in points]
        axes.plot(contexts, ratios, "o-", ms=4, label=method)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="context length, tokens",
        ylabel="TTFT overhead, % of the forward pass",
        title=title,
    )
    ticks = sorted({prediction.context for prediction in predictions})
    axes.set_xticks(ticks, [_length(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.lower()[1:], dpi=120)
    write_atomically(path, buffer.getvalue())


def _length(tokens: int) -> str:
    return f"{tokens // 1024}K" if tokens % 1024 == 0 else str(tokens)
