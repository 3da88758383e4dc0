"""Accuracy of policies and budgets on tasks, by `lookaheadkv eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lookaheadkv_kernels import cli


def run(spec: dict[str, Any], folder: Path, options: list[str]) -> None:
    """Evaluate, or go on.

    Args:
        spec: tasks, lengths, samples, policies, budgets, and answers that are decoded together.
        folder: of the results.
        options: of `lookaheadkv eval` besides.

    Raises:
        SystemExit: it failed; it has said why.
    """
    arguments = ["eval", "--output", str(folder), "--task", *spec["tasks"], *options]
    arguments += ["--samples", str(spec["samples"]), "--together", str(spec["together"])]
    for option, name in (("length", "lengths"), ("policy", "policies"), ("budget", "budgets")):
        arguments += [f"--{option}", *map(str, spec[name])]
    if status := cli.main(arguments):
        raise SystemExit(status)
