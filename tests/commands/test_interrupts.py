"""Ctrl-C and its like: what was done is on the disk, one line says so, and the same call goes on."""

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

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

from support.tiny_model import save_tiny_model, save_tiny_modules

from lookaheadkv_kernels._interrupts import Interrupted, held_back, number_of, raised

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
COMMAND = [sys.executable, "-m", "lookaheadkv_kernels"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_model(folder)
    save_tiny_modules(folder / "modules")
    return folder


def words(first: int, count: int) -> str:
    return " ".join(f"w{(first + i) % 90}" for i in range(count))


def interrupted(command: list[str], until: Callable[[], bool], number: int) -> str:
    """Run a command, send it a signal when something has been reached; returns what it printed."""
    process = subprocess.Popen(
        [*COMMAND, *command], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not until():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors and "run the same command to go on" in errors
    return errors


def train(tiny: Path, data: Path, output: Path) -> list[str]:
    return [
        *("train", "--model", str(tiny), "--dtype", "float32", "--data", str(data)),
        *("--output", str(output), "--steps", "12", "--batch-size", "16", "--threads", "1"),
        *("--max-prompt", "400", "--max-response", "8", "--num-lookahead", "4"),
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records with and without responses."""
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    records = [{"prompt": words(7 * i, 300), "response": words(i, 8)} for i in range(20)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_training_writes_a_checkpoint_and_goes_on_to_the_same_bytes(
    tiny: Path, data: Path, tmp_path: Path, number: int
) -> None:
    whole, output = tmp_path / "whole", tmp_path / "interrupted"
    log = tmp_path / "log"

    def is_in_a_step() -> bool:
        # Steps are saved every 25 at most, so nothing is on the disk before the signal.
        return "3/12" in log.read_text()

    command = [*train(tiny, data, output), "--checkpoint-minutes", "0"]
    with log.open("w") as file:
        process = subprocess.Popen([*COMMAND, *command], env=ENVIRONMENT, stderr=file)
        deadline = time.monotonic() + 120
        while not is_in_a_step():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.005)
        assert not output.exists()
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    told = log.read_text().splitlines()[-1]
    (checkpoint,) = output.glob("step-*")
    done = int(checkpoint.name[5:])
    assert 3 <= done < 12
    assert told == (
        f"lookaheadkv train: interrupted; step {done} of 12 is in {output}; "
        "run the same command to go on"
    )
    assert "Traceback" not in log.read_text()
    for folder in (output, whole):
        subprocess.run(
            [*COMMAND, *train(tiny, data, folder)], env=ENVIRONMENT, check=True, capture_output=True
        )
    for name in ("lookahead.safetensors", "loss.csv"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()


def test_responses_go_on_to_the_same_bytes(tiny: Path, data: Path, tmp_path: Path) -> None:
    output, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"

    def command(path: Path) -> list[str]:
        start = ["generate-responses", "--model", str(tiny), "--dtype", "float32"]
        return [*start, "--max-response", "150", str(data), str(path)]

    errors = interrupted(
        command(output),
        lambda: output.exists() and output.read_bytes().count(b"\n") >= 2,
        signal.SIGINT,
    )
    done = output.read_bytes().count(b"\n")
    assert 2 <= done < 20
    assert errors.splitlines()[-1].startswith("lookaheadkv generate-responses: interrupted")
    for path in (output, whole):
        subprocess.run([*COMMAND, *command(path)], env=ENVIRONMENT, check=True, capture_output=True)
    assert output.read_bytes() == whole.read_bytes()


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
