"""How figures are written: Markdown tables, times, sizes, and lengths of prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.machine import ROOT

DOCS = ROOT / "docs"


def row(cells: Iterable[object]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table."""
    return [row(header), row(["---"] * len(header)), *map(row, rows)]


def time_of(seconds: float) -> str:
    """Three digits and a unit."""
    if seconds < 1e-3:
        return f"{1e6 * seconds:.3g} us"
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def mebibytes(count: float) -> str:
    """Bytes in MiB."""
    return f"{count / 2**20:.1f} MiB"


def length_of(keys: int) -> str:
    """32768 as 32K."""
    return f"{keys // 1024}K" if keys % 1024 == 0 else str(keys)
