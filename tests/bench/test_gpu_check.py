"""bench/gpu_check.sh as far as it goes without a GPU: it finds the package, and goes on."""

from __future__ import annotations

import json
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from support.build_tools import ROOT, checked, run, tool

from bench.bars import Bar, measure

SCRIPT = ROOT / "bench" / "gpu_check.sh"

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a script for Linux"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run the script itself"),
]


def bare_python(folder: Path) -> Path:
    """An interpreter that has every package but the one under test, as on a machine with the tree
    alone: without the ``site`` module no .pth file makes an editable install importable."""
    script = folder / "python"
    site = sysconfig.get_path("purelib")
    script.write_text(
        f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{site}" exec "{sys.executable}" -S "$@"\n'
    )
    script.chmod(0o755)
    return script


@pytest.mark.slow
def test_tells_what_is_missing_and_goes_on(tmp_path: Path) -> None:
    """In a plain tree, whose libraries were built elsewhere."""
    result = run(
        [tool("bash"), SCRIPT, tmp_path / "out"],
        cwd=tmp_path,
        env={"PYTHON": str(bare_python(tmp_path)), "PYTHONPATH": ""},
    )
    assert result.returncode == 1, result.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["device"].startswith("FAILED")
    assert summary["cuda"] == summary["triton"] == "skipped"
    assert "no such backend here, available: cpu" in result.stdout
    with tarfile.open(tmp_path / "out" / "results.tgz") as archive:
        assert {"./summary.txt", "./summary.json", "./device.log"} <= set(archive.getnames())


@pytest.mark.parametrize("fails", [False, True])
def test_bars_are_kept_as_they_come(tmp_path: Path, fails: bool) -> None:
    """A group that fails, and whatever ends the run later, take no figures along."""
    path = tmp_path / "bars.json"
    kept = []

    def group(*floors: float) -> Iterator[Bar]:
        for floor in floors:
            yield Bar("what", 3.0 / floor, 1.5, "at most", figures={"floor": floor})
        if fails:
            raise RuntimeError("no kernel image")

    def last() -> Iterator[Bar]:
        kept.append(json.loads(path.read_text()))  # of the groups before
        yield Bar("what", 3.0, 1.5, "at most", figures={"floor": 1.0})

    _, failures = measure([("first", partial(group, 1.0, 2.0)), ("last", last)], {}, path)
    assert bool(failures) is fails
    assert [bar["floor"] for bar in kept[0]["bars"]] == [1.0, 2.0]
    assert [bar["met"] for bar in kept[0]["bars"]] == [False, True]
    assert kept[0]["failures"] == (["first: RuntimeError('no kernel image')"] if fails else [])
    assert len(json.loads(path.read_text())["bars"]) == 3


def test_python_parts_start_without_a_gpu() -> None:
    for module in ("gpu_facts", "gpu_small", "bars.gpu"):
        checked([sys.executable, "-c", f"import bench.{module}"], cwd=ROOT)
