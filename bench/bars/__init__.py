"""Bars: figures that the project asks of itself, measured and judged.

One module per group; `python -m bench.bars --help` lists them.
"""

from __future__ import annotations

import argparse
import json
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.text import time_of
from lookaheadkv_kernels.lookahead.files import write_atomically

RULES = {"at least": operator.ge, "at most": operator.le, "above": operator.gt}


@dataclass(frozen=True)
class Bar:
    """A figure and what is asked of it.

    Attributes:
        what: what is measured; no other bar of the group has the same.
        value: the figure.
        wanted: what it is compared with.
        rule: how: one of RULES.
        text: what the figure is made of, for readers.
        figures: what the figure is made of, for JSON.
    """

    what: str
    value: float
    wanted: float
    rule: str = "at least"
    text: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether the figure is as wanted."""
        return bool(RULES[self.rule](self.value, self.wanted))

    def record(self) -> dict[str, Any]:
        """The bar for JSON."""
        return {
            "what": self.what,
            "value": self.value,
            "wanted": self.wanted,
            **self.figures,
            "met": self.met,
        }

    def __str__(self) -> str:
        verdict = "met" if self.met else "NOT MET"
        asked = f"{self.value:7.3g} ({self.rule} {self.wanted:.3g})"
        return f"{self.what:56} {asked:28} {verdict:8} {self.text}"


Step = tuple[str, Callable[[], Iterable[Bar]]]


def times_better(what: str, ours: str, peer: str, ratio: float, wanted: float) -> Bar:
    """A bar whose value says how many times better than a peer we are."""
    text = f"{ours}, peer {peer}"
    return Bar(what, ratio, wanted, text=text, figures={"ours": ours, "peer": peer})


def times_faster(what: str, ours: float, peer: float, wanted: float) -> Bar:
    """A bar of two times in seconds."""
    return times_better(what, time_of(ours), time_of(peer), peer / ours, wanted)


def measure(
    steps: Iterable[Step], record: dict[str, Any], path: Path | None
) -> tuple[list[Bar], list[str]]:
    """Run the steps; returns the bars, and what failed.

    Time may run out: every bar is printed as soon as it is measured, and ``path`` is written anew
    after every step, with ``record`` and all bars so far. A step that fails does not stop the
    others, and the bars that it gave before are kept.
    """
    bars: list[Bar] = []
    failures: list[str] = []
    for name, step in steps:
        print(f"{name} ...", flush=True)
        try:
            for bar in step():
                print(bar, flush=True)
                bars.append(bar)
        except Exception as error:
            failures.append(f"{name}: {error!r}")
            print(f"FAILED {failures[-1]}", flush=True)
        if path is not None:
            found = {**record, "bars": [bar.record() for bar in bars], "failures": failures}
            write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())
    met = sum(bar.met for bar in bars)
    print(f"{met} of {len(bars)} bars met, {len(failures)} steps failed")
    return bars, failures


def status(bars: Sequence[Bar], failures: Sequence[str]) -> int:
    """The exit status that says whether all went well and all bars are met."""
    return int(bool(failures) or not all(bar.met for bar in bars))


def options(group: str, description: str | None) -> argparse.ArgumentParser:
    """The command line of a group, to which the group adds its own options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.bars {group}",
        description=description,
        epilog="Groups: cpu (the default), paged, method, gpu, ruler. `python -m bench.bars GROUP "
        "--help` tells each one's options.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return parser
