"""What the plots of all generated pages share: their files and their axes of lengths."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lookaheadkv_kernels.lookahead.files import write_atomically


def panel(width: float, height: float) -> tuple[Figure, Any]:
    """A figure of one panel, inches. Without pyplot: no global state and no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a PNG; the same data give the same bytes, as it names no version of matplotlib."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def log_ticks(axes: Any, values: Sequence[float], label: Callable[[Any], str] = str) -> None:
    """A horizontal axis in powers of two, with a tick at every value."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(values), [label(value) for value in values])
    axes.minorticks_off()
