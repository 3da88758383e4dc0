"""The evaluation runner: kills, shards, folders of other runs, metrics, tables, plots."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")


from lookaheadkv_kernels import cli
from lookaheadkv_kernels.commands import evaluate
from lookaheadkv_kernels.commands.model import device_of
from lookaheadkv_kernels.evaluation.records import (
    Key,
    Shard,
    Writer,
    locked,
    read_predictions,
    sort_key,
)
from lookaheadkv_kernels.evaluation.report import metrics_of, table, write_plot


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> object:
    """Sums in the same order as in the processes that the tests start."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def arguments(tiny: Path, output: Path, *more: str) -> list[str]:
    """Two tasks, four policies and two budgets: 28 answers."""
    return [
        *("eval", "--model", str(tiny), "--weights", str(tiny / "modules"), "--dtype", "float32"),
        *("--output", str(output), "--task", "vt", "fwe", "--length", "400", "--samples", "2"),
        *("--policy", "full", "snapkv", "lookahead", "laq", "--budget", "40", "0.3"),
        *("--measures", "--threads", "1", *more),
    ]


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    output = tmp_path_factory.mktemp("whole")
    before = torch.get_num_threads()
    assert cli.main(arguments(tiny, output)) == 0
    torch.set_num_threads(before)
    return output


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_whole_run_describes_itself(whole: Path) -> None:
    records = lines(whole / "predictions.jsonl")
    assert len(records) == 28
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["complete"] and metrics["predictions"] == metrics["expected"] == 28
    assert len(metrics["cells"]) == 14
    assert {cell["samples"] for cell in metrics["cells"]} == {2}
    config = json.loads((whole / "config.json").read_text())
    assert config["facts"]["seed"] == 0 and len(config["facts"]["weights_sha256"]) == 64
    assert config["grid"]["budgets"] == [40, 0.3]
    assert {"torch", "transformers", "lookaheadkv_kernels"} <= set(config["environment"])
    assert (whole / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    for record in records:
        assert 380 < record["prompt_tokens"] + 50 <= 400 or record["task"] == "vt"
        if record["policy"] == "full":
            measures = record["measures"]
            assert measures["recall"] == 1 and measures["mass"] == pytest.approx(1)
            assert measures["agreement"] == record["answer_tokens"][0] and measures["exact"] == 1
            assert measures["perturbation"] == pytest.approx(0, abs=1e-5)
        else:
            assert 0 < record["measures"]["recall"] < 1
            assert record["measures"]["kl"] > 0 and record["measures"]["perturbation"] > 0


def test_a_killed_run_goes_on_to_the_same_bytes(tiny: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lookaheadkv_kernels", *arguments(tiny, output)]
    process = subprocess.Popen(command, env=environment)
    predictions = output / "predictions.jsonl"
    deadline = time.monotonic() + 300
    while not predictions.exists() or predictions.read_bytes().count(b"\n") < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = predictions.read_bytes().count(b"\n")
    assert 3 <= found < 28 and not (output / "metrics.json").exists()
    with predictions.open("ab") as file:
        file.write(b'{"task": "vt", "len')  # and the kill may come within a line
    before = lines_of_keys(output)
    assert cli.main(arguments(tiny, output)) == 0
    assert (output / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    after = read_predictions(output)
    assert len(after) == len(lines(predictions)) == 28
    # What had been predicted was not predicted again.
    assert all(after[key]["seconds"] == record["seconds"] for key, record in before.items())


def lines_of_keys(folder: Path) -> dict[Key, dict[str, Any]]:
    return read_predictions(folder)


def test_shards_come_to_the_same_bytes(
    tiny: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(tiny, tmp_path, "--shard", "1/2")) == 0
    assert "14 of 28 predictions so far" in capsys.readouterr().out
    assert not json.loads((tmp_path / "metrics.json").read_text())["complete"]
    assert cli.main(arguments(tiny, tmp_path, "--shard", "1/2", "--merge")) == 0
    assert [p.name for p in tmp_path.glob("*.jsonl")] == ["predictions-1-of-2.jsonl"]
    # The rest by three processes instead of two: what is there stays.
    for rank in range(3):
        assert cli.main(arguments(tiny, tmp_path, "--shard", f"{rank}/3")) == 0
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["predictions.jsonl"]
    assert (tmp_path / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()


def test_a_folder_of_another_run_is_refused_and_a_grid_may_grow(
    tiny: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "predictions.jsonl"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    assert cli.main(arguments(tiny, tmp_path, "--seed", "1")) == 2
    assert "seed was 0 and is 1 now" in capsys.readouterr().err
    # As if nothing had needed the modules so far: a policy that does may be added.
    config = json.loads((tmp_path / "config.json").read_text())
    weights = config["facts"].pop("weights_sha256")
    (tmp_path / "config.json").write_text(json.dumps(config))
    more = arguments(tiny, tmp_path)
    more[more.index("40")] = "60"
    assert cli.main(more) == 0
    records = read_predictions(tmp_path)
    assert len(records) == 28 + 12
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["facts"]["weights_sha256"] == weights and config["grid"]["budgets"] == [60, 0.3]
    (tmp_path / "config.json").unlink()
    assert cli.main(more) == 2
    assert "holds predictions but no config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--task", "nih"), "unknown task 'nih'"),
        (("--task", "qa_1"), "task qa_1 needs --squad"),
        (("--task", "qa_2", "--hotpotqa", "/no/file"), "/no/file"),
        (("--length", "600"), "the model has 512 positions"),
        (("--samples", "0"), "samples must be >= 1"),
        (("--budget", "1.5"), "budget as a ratio must be in"),
        (("--shard", "2/2"), "shard must be i/n with 0 <= i < n"),
        (("--policy", "speckv"), "needs --draft-model"),
        (("--task", "mtbench", "--mtbench", "."), "mtbench needs a judge"),
        (("--judge-url", "http://127.0.0.1/v1"), "--judge-url needs --judge-model"),
    ],
)
def test_wrong_arguments_are_named(
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wrong: tuple[str, ...],
    message: str,
) -> None:
    assert cli.main(arguments(tiny, tmp_path, *wrong)) == 2
    assert message in capsys.readouterr().err


def test_shards_are_told_or_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(told: str | None) -> Shard:
        shard: Shard = evaluate._shard(argparse.Namespace(shard=told))
        return shard

    assert found(None) == Shard(0, 1) and found("1/3") == Shard(1, 3)
    for name, value in (("LOCAL_RANK", "1"), ("RANK", "5"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)  # as torchrun does
    assert found(None) == Shard(5, 8) and found("1/3") == Shard(1, 3)
    assert device_of("cuda") == "cuda:1" and device_of("cpu") == "cpu"


def test_a_line_that_is_no_prediction_is_named(tmp_path: Path) -> None:
    (tmp_path / "predictions.jsonl").write_text('{"task": "vt"}\n')
    with pytest.raises(ValueError, match=r"predictions\.jsonl, line 1: no prediction"):
        read_predictions(tmp_path)


def test_two_processes_cannot_write_one_file(tmp_path: Path) -> None:
    first = Writer(tmp_path, Shard())
    with pytest.raises(ValueError, match="another process writes to it"):
        Writer(tmp_path, Shard())
    Writer(tmp_path, Shard(0, 2)).close()
    first.close()
    Writer(tmp_path, Shard()).close()
    with locked(tmp_path):
        pass


def test_a_sample_that_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    def of(sample: int) -> list[dict[str, Any]]:
        return [record("vt", sample, "snapkv", budget, 1.0)[1] for budget in (64, 128, 256)]

    writer = Writer(tmp_path, Shard())
    writer.append(of(0))
    writer.append(of(1))
    writer.close()
    path = tmp_path / "predictions.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)[2:4]
    whole = path.read_bytes()
    for cut in (9, len(second), len(second) + 9):  # within a line, behind it, within the next
        path.write_bytes(whole[: whole.index(first) + len(first) + cut])
        assert [key.sample for key in read_predictions(tmp_path)] == [0, 0, 0]
        writer = Writer(tmp_path, Shard())
        writer.append(of(1))
        writer.close()
        assert path.read_bytes() == whole
    # Another number of processes leaves the file alone, and does not count what was cut short.
    path.rename(tmp_path / "predictions-1-of-2.jsonl")
    with (tmp_path / "predictions-1-of-2.jsonl").open("r+b") as file:
        file.truncate(len(whole) - 1)
    assert {key.sample for key in read_predictions(tmp_path)} == {0}


def record(task: str, sample: int, policy: str, budget: int | None, score: float) -> Any:
    key = Key(task, 1024, sample, policy, budget)
    return key, {**key._asdict(), "score": score, "measures": {"nll": 2 * score}}


def test_metrics_by_hand(tmp_path: Path) -> None:
    records = dict(
        [
            record("vt", 0, "full", None, 1.0),
            record("vt", 0, "snapkv", 64, 0.2),
            record("vt", 1, "snapkv", 64, 0.7),
            record("cwe", 0, "snapkv", 64, 0.1),
        ]
    )
    records = {key: records[key] for key in sorted(records, key=sort_key)}
    metrics = metrics_of(records, 6)
    assert not metrics["complete"]
    cells = {(cell["task"], cell["policy"]): cell for cell in metrics["cells"]}
    assert cells["vt", "snapkv"]["score"] == pytest.approx(45)
    assert cells["vt", "snapkv"]["nll"] == pytest.approx(0.9)
    assert cells["vt", "snapkv"]["samples"] == 2
    (average,) = [a for a in metrics["averages"] if a["policy"] == "snapkv"]
    assert average["score"] == pytest.approx((45 + 10) / 2) and average["tasks"] == 2
    rows = [line.split() for line in table(metrics).splitlines()]
    assert rows == [
        ["length", "policy", "budget", "cwe", "vt", "average"],
        ["1024", "full", "all", "-", "100.0", "100.0"],
        ["1024", "snapkv", "64", "10.0", "45.0", "27.5"],
    ]
    write_plot(tmp_path, metrics)
    assert (tmp_path / "accuracy.png").stat().st_size > 5000


def test_conversations_are_evicted_turn_by_turn(tiny: Path, tmp_path: Path) -> None:
    from lookaheadkv_kernels.evaluation.mtbench import MtBench
    from lookaheadkv_kernels.evaluation.plan import Grid
    from lookaheadkv_kernels.evaluation.runner import Evaluation
    from lookaheadkv_kernels.integrations.transformers.loading import load
    from lookaheadkv_kernels.policies import SnapKV

    turns = [" ".join(f"w{number}" for number in range(60)), "w7 w8"]
    (tmp_path / "question.jsonl").write_text(
        "".join(json.dumps({"question_id": n, "turns": turns}) + "\n" for n in range(2))
    )
    verdicts = iter(["[[7]]", "[[2]]", "none", "none"])
    asked: list[Any] = []

    def judge(messages: Any) -> str:
        asked.append(messages)
        return next(verdicts)

    model, tokenizer = load(str(tiny))
    task = MtBench(tokenizer, tmp_path, judge, max_new_tokens=6)
    evaluation = Evaluation(
        tmp_path / "results",
        model,
        tokenizer,
        {"snapkv": SnapKV(window=4)},
        Grid([task], [4096], ["snapkv"], [16], 50),
        facts={},
        environment={},
    )
    metrics = evaluation.run()
    (cell,) = metrics["cells"]
    assert cell["score"] == pytest.approx(45) and cell["length"] == 0
    assert cell["samples"] == 2 and cell["unscored"] == 1
    first, second = read_predictions(tmp_path / "results").values()
    assert len(first["answers"]) == len(first["answer_tokens"]) == 2
    assert first["answers"] == second["answers"] and second["score"] is None
    assert first["answers"][0] in asked[1][1]["content"]


def test_published_files_are_evaluated(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = " ".join(f"w{number % 90}" for number in range(700))
    records = [
        {"input": "w5 w6", "context": words, "answers": ["w7"], "_id": str(n)} for n in range(3)
    ]
    (tmp_path / "hotpotqa.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    output = tmp_path / "results"
    assert (
        cli.main(
            [
                *("eval", "--model", str(tiny), "--dtype", "float32", "--output", str(output)),
                *("--task", "hotpotqa", "--longbench", str(tmp_path), "--length", "300"),
                *("--policy", "full", "streaming_llm", "--budget", "64"),
            ]
        )
        == 0
    )
    assert "hotpotqa" in capsys.readouterr().out
    found = read_predictions(output)
    assert len(found) == 6  # the file has three records
    assert all(record["prompt_tokens"] + 32 <= 300 for record in found.values())
    changed = json.loads((output / "config.json").read_text())["sources"]["hotpotqa"]
    assert len(changed["sha256"]) == 64
