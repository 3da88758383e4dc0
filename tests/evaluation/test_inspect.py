"""``lookaheadkv inspect``: the page and the answers are those of the evaluation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")


from lookaheadkv_kernels import cli
from lookaheadkv_kernels.evaluation.records import read_predictions


def model_options(tiny: Path) -> list[str]:
    return ["--model", str(tiny), "--weights", str(tiny / "modules"), "--dtype", "float32"]


def test_a_sample_of_an_evaluation_can_be_looked_at(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policies = ("lookahead", "adakv", "laq")
    common = (*model_options(tiny), "--task", "fwe", "--budget", "40", "60", "--length", "300")
    results = tmp_path / "results"
    arguments = [*common, "--policy", "full", *policies, "--samples", "2"]
    assert cli.main(["eval", *arguments, "--output", str(results)]) == 0
    page = tmp_path / "kept.html"
    capsys.readouterr()
    arguments = [*common, "--policy", *policies, "--sample", "1"]
    arguments += ["--output", str(page), "--png", str(tmp_path / "kept.png")]
    assert cli.main(["inspect", *arguments]) == 0
    printed = capsys.readouterr().out
    wanted = {
        (key.policy, "all" if key.budget is None else str(key.budget)): record
        for key, record in read_predictions(results).items()
        if key.sample == 1
    }
    lines = {tuple(line.split()[:2]): line for line in printed.splitlines()}
    assert len(wanted) == 7
    for cell, record in wanted.items():
        assert " ".join(record["answers"][0].split()) in lines[cell]
        assert f"{100 * record['score']:.0f} %" in lines[cell]
    html = page.read_text()
    assert html.count("<section data-policy=") == 6 and "lookahead, 40" in html
    data = re.search(r"<script[^>]*application/json[^>]*>(.*?)</script>", html, re.DOTALL)
    assert data is not None
    (first, *_), tokens = (json.loads(data[1])[name] for name in ("policies", "tokens"))
    assert first["counts"] == [40] * 6 and tokens == wanted["full", "all"]["prompt_tokens"]
    assert (tmp_path / "kept.png").read_bytes().startswith(b"\x89PNG")


def test_a_text_of_ones_own(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "prompt.txt"
    text.write_text(" ".join(f"w{number}" for number in range(80)))
    output = ("--output", str(tmp_path / "page" / "kept.html"))
    arguments = ["inspect", *model_options(tiny), *output, "--max-new-tokens", "4"]
    arguments += ["--policy", "snapkv", "random", "--budget", "0.6", "--mark", "w7 w8", "w70"]
    assert cli.main([*arguments, "--prompt-file", str(text)]) == 0
    html = (tmp_path / "page" / "kept.html").read_text()
    assert html.count("<mark") >= 2 and "snapkv, 0.6" in html
    assert "%" not in capsys.readouterr().out
    for wrong, message in (
        (("--prompt", "w1 w2", "--mark", "w9"), "the prompt does not contain 'w9'"),
        (("--prompt", "", "--no-chat"), "the prompt is empty"),
        (("--task", "ruler"), "task ruler is a group"),
        (("--task", "fwe", "--sample", "-1"), "sample must be >= 0, got -1"),
        (("--prompt-file", "/no/file"), "/no/file"),
    ):
        assert cli.main([*arguments[:-3], *wrong]) == 2
        assert message in capsys.readouterr().err
