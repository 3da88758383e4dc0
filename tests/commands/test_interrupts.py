"""Ctrl-C and its like: what was done is on the disk, and the same command goes on from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

from support.tiny_model import save_tiny_model, save_tiny_modules

from lookaheadkv_kernels import cli
from lookaheadkv_kernels._interrupts import Interrupted, held_back, number_of, raised
from lookaheadkv_kernels.evaluation import runner
from lookaheadkv_kernels.evaluation.records import read_predictions
from lookaheadkv_kernels.training import checkpoint, trainer
from lookaheadkv_kernels.training import responses as responses_module
from lookaheadkv_kernels.training.trainer import Trainer

TOGETHER = Path(__file__).parents[1] / "support" / "train_tiny.py"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_model(folder)
    save_tiny_modules(folder / "modules")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records with and without responses."""
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    records = [
        {"prompt": words(7 * i, 30), "response": words(i, 4) if i % 3 else None} for i in range(9)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def words(first: int, count: int) -> str:
    return " ".join(f"w{(first + i) % 90}" for i in range(count))


def interrupting(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, number: int
) -> list[int]:
    """This process gets a signal in the midst of the ``call``-th call of a function, once."""
    original = getattr(owner, name)
    calls: list[int] = []

    def called(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls) + 1)
        result = original(*args, **kwargs)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(owner, name, called)
    return calls


def train(tiny: Path, data: Path, output: Path, *more: str) -> list[str]:
    """Six steps of three samples."""
    return [
        *("train", "--model", str(tiny), "--dtype", "float32", "--data", str(data)),
        *("--output", str(output), "--steps", "6", "--batch-size", "3"),
        *("--max-prompt", "60", "--max-response", "6", "--num-lookahead", "4", *more),
    ]


@pytest.fixture(scope="module")
def whole(
    tiny: Path, data: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> Path:
    """A run that nothing interrupted."""
    output = tmp_path_factory.mktemp("whole")
    assert cli.main(train(tiny, data, output)) == 0
    return output


# (in the midst of what, at which call, steps that are done then)
PLACES = {
    "a sample's loss": (Trainer, "loss", 8, 2),
    "the first sample": (Trainer, "loss", 1, 0),
    "a change of the weights": (torch.optim.Adam, "step", 3, 3),
    "its first half": (torch.nn.utils, "clip_grad_norm_", 3, 3),
    "a checkpoint": (checkpoint, "save_file", 2, 4),
    "the loss curve": (trainer, "write_curve", 1, 2),
    "the last write": (trainer, "save_modules", 1, 6),
}


@pytest.mark.parametrize(
    ("place", "number"),
    [*((place, signal.SIGINT) for place in PLACES), ("a sample's loss", signal.SIGTERM)],
)
def test_training_keeps_every_step_and_goes_on_to_the_same_bytes(
    tiny: Path,
    data: Path,
    whole: Path,
    tmp_path: Path,
    place: str,
    number: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    owner, name, call, done = PLACES[place]
    output = tmp_path / "run"
    # Without the signal there would be checkpoints of steps 2, 4 and 6, or of step 6 alone.
    every = ["--checkpoint-every", "2" if owner in (checkpoint, trainer) else "25"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupting(monkeypatch, owner, name, call, number)
        assert cli.main(train(tiny, data, output, *every)) == 128 + number
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    told = f"step {done} of 6 is in {output}; " if done else "no step was done yet; "
    last = f"lookaheadkv train: interrupted; {told}run the same command to go on"
    assert errors.splitlines()[-1] == last
    assert [path.name for path in output.glob("step-*")] == [f"step-{done:06d}"] * (done > 0)
    assert not list(output.glob(".step*"))
    assert cli.main(train(tiny, data, output)) == 0
    for name in ("lookahead.safetensors", "loss.csv"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()


def test_an_interrupted_evaluation_is_made_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    command = ["train", "--model", str(tiny), "--dtype", "float32", "--data", "recipe"]
    command += ["--steps", "4", "--batch-size", "1", "--max-prompt", "256", "--max-response", "4"]
    command += ["--num-lookahead", "4", "--eval-every", "2", "--eval-samples", "2"]
    assert cli.main([*command, "--output", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        interrupting(patch, Trainer, "loss", 4, signal.SIGINT)  # two samples, then held-out ones
        assert cli.main([*command, "--output", str(tmp_path / "run")]) == 130
    state = json.loads((tmp_path / "run" / "step-000002" / "state.json").read_text())
    assert len(state["losses"]) == 2 and state["evaluations"] == []
    assert cli.main([*command, "--output", str(tmp_path / "run")]) == 0
    found, wanted = ((tmp_path / name / "loss.csv").read_bytes() for name in ("run", "whole"))
    assert found == wanted


def test_an_error_costs_no_step_either(
    tiny: Path, data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.loss
    calls = []

    def failing(self: Trainer, sample: Any) -> Any:
        calls.append(sample)
        if len(calls) == 11:
            raise RuntimeError("out of memory")
        return original(self, sample)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(Trainer, "loss", failing)
        cli.main(train(tiny, data, tmp_path))
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000003"]
    assert cli.main(train(tiny, data, tmp_path)) == 0
    for name in ("lookahead.safetensors", "loss.csv"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_checkpoints_come_by_minutes_too(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    original = checkpoint.save_checkpoint

    def noted(folder: Path, modules: Any, optimizer: Any, state: checkpoint.State) -> Path:
        saved.append(state.step)
        return original(folder, modules, optimizer, state)

    monkeypatch.setattr(trainer, "save_checkpoint", noted)
    assert cli.main(train(tiny, data, tmp_path / "a", "--checkpoint-minutes", "1e-6")) == 0
    assert saved == [1, 2, 3, 4, 5, 6]
    saved.clear()
    assert cli.main(train(tiny, data, tmp_path / "b", "--checkpoint-minutes", "0")) == 0
    assert saved == [6]


# (in the midst of what, at which call, responses that are on the disk then)
ANSWERING = {
    "an answer": (responses_module, "greedy_answer", 4, 3),
    "the prompt": (responses_module, "next_logits", 1, 0),
    "a write": (responses_module, "_append", 5, 5),
}


@pytest.mark.parametrize("place", ANSWERING)
def test_responses_go_on_to_the_same_bytes(
    tiny: Path, data: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    owner, name, call, done = ANSWERING[place]

    def command(path: Path) -> list[str]:
        start = ["generate-responses", "--model", str(tiny), "--dtype", "float32"]
        return [*start, "--max-response", "5", str(data), str(path)]

    output, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupting(monkeypatch, owner, name, call, signal.SIGINT)
        assert cli.main(command(output)) == 130
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == (
        f"lookaheadkv generate-responses: interrupted; {done} of 9 responses are in {output}; "
        "run the same command to go on"
    )
    assert output.read_bytes().count(b"\n") == done
    for path in (output, whole):
        assert cli.main(command(path)) == 0
    assert output.read_bytes() == whole.read_bytes()


# (in the midst of what, at which call, answers that are on the disk then)
EVALUATING = {
    "a prompt": (runner.Evaluation, "_read", 2, 4),
    "an answer": (runner, "decode_together", 2, 4),
    "a write": (runner.Writer, "append", 1, 4),
}


@pytest.mark.parametrize("place", EVALUATING)
def test_an_evaluation_goes_on_to_the_same_bytes(
    tiny: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    owner, name, call, done = EVALUATING[place]

    def command(folder: str) -> list[str]:
        """Three batches of four answers."""
        return [
            *("eval", "--model", str(tiny), "--dtype", "float32", "--task", "fwe"),
            *("--output", str(tmp_path / folder), "--length", "250", "--samples", "3"),
            *("--policy", "streaming_llm", "random", "--budget", "20", "30", "--together", "4"),
        ]

    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupting(monkeypatch, owner, name, call, signal.SIGINT)
        assert cli.main(command("run")) == 130
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == (
        f"lookaheadkv eval: interrupted; {done} of 12 missing answers are in {tmp_path / 'run'}; "
        "run the same command to go on"
    )
    assert len(read_predictions(tmp_path / "run")) == done
    for folder in ("run", "whole"):
        assert cli.main(command(folder)) == 0
    found, wanted = ((tmp_path / name / "metrics.json").read_bytes() for name in ("run", "whole"))
    assert found == wanted


def test_a_command_that_keeps_nothing_says_so(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lookaheadkv_kernels.evaluation import inspection

    command = ["inspect", "--model", str(tiny), "--dtype", "float32", "--prompt", words(0, 60)]
    command += ["--output", str(tmp_path / "page.html"), "--policy", "random", "--budget", "9"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupting(monkeypatch, inspection, "decode_together", 1, signal.SIGINT)
        assert cli.main(command) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "lookaheadkv inspect: interrupted"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_command_of_its_own_ends_with_one_line(tiny: Path, data: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log, output = tmp_path / "log", tmp_path / "run"
    command = train(tiny, data, output, "--steps", "2000", "--checkpoint-every", "2000")
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "lookaheadkv_kernels", *command], env=environment, stderr=file
        )
        wait_for(lambda: "3/2000" in log.read_text(), process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    (saved,) = output.glob("step-*")
    assert log.read_text().splitlines()[-1] == (
        f"lookaheadkv train: interrupted; step {int(saved.name[5:])} of 2000 is in {output}; "
        "run the same command to go on"
    )
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_several_processes_stop_together(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(TOGETHER)]
    output = tmp_path / "run"
    process = subprocess.Popen([*command, str(output), "400", "0.02"], env=environment)
    wait_for(lambda: checkpoint.latest(output) is not None, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    saved = checkpoint.latest(output)
    assert saved is not None
    # The checkpoint is of the last step, also where none was due (they are every 2 steps).
    state = checkpoint.read_state(saved)
    assert state.step == len(state.losses) == int(saved.name[5:]) < 400


def wait_for(reached: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


def test_a_reader_that_has_gone_is_no_error() -> None:
    command = [sys.executable, "-m", "lookaheadkv_kernels", "params"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()  # as `| head -0` does
    assert process.stderr.read() == b""
    assert process.wait(60) == 141


def test_signals_are_held_back_and_then_take_effect() -> None:
    done = []
    with raised():
        with pytest.raises(Interrupted) as caught, held_back() as held:
            os.kill(os.getpid(), signal.SIGTERM)
            done.append(list(held.waiting))
        assert number_of(caught.value) == signal.SIGTERM and done == [[signal.SIGTERM]]
        with pytest.raises(KeyboardInterrupt) as ctrl_c, held_back():
            os.kill(os.getpid(), signal.SIGINT)
        assert number_of(ctrl_c.value) == signal.SIGINT
        # What left the block by itself is not interrupted a second time.
        with pytest.raises(Interrupted, match="saved"), held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            raise Interrupted("saved", signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ignored_signals_stay_ignored_and_other_threads_are_left_alone() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raised(), held_back():
            os.kill(os.getpid(), signal.SIGHUP)  # as under nohup
    finally:
        signal.signal(signal.SIGHUP, before)
    found: list[str] = []

    def elsewhere() -> None:
        with raised(), held_back() as held:
            found.extend(map(str, held.waiting))
        found.append("done")

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == ["done"]
