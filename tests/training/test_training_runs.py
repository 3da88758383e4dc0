"""Runs as a whole: processes, kills, checkpoints, the loss curve."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from safetensors.torch import load_file
from support.train_tiny import make_trainer

from lookaheadkv_kernels.lookahead import load_modules
from lookaheadkv_kernels.training.checkpoint import latest
from lookaheadkv_kernels.training.config import TrainingConfig
from lookaheadkv_kernels.training.schedule import learning_rate, shares
from lookaheadkv_kernels.training.trainer import without_middle

SCRIPT = Path(__file__).parents[1] / "support" / "train_tiny.py"
ENVIRONMENT = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def one_thread() -> object:
    """Sums in the same order as in the processes that the tests start."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("num_shares", [1, 2, 3, 7])
def test_a_batch_is_dealt_out_whole_and_evenly(num_shares: int) -> None:
    costs = [5.0, 1.0, 9.0, 2.0, 2.0]
    dealt = shares(costs, num_shares)
    assert sorted(index for share in dealt for index in share) == [0, 1, 2, 3, 4]
    loads = [sum(costs[index] for index in share) for share in dealt]
    assert max(loads) <= max(9.0, 19.0 / num_shares + 5.0)
    assert shares([7.0, 4.0, 3.0], 2) == [[0], [1, 2]]


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    config = TrainingConfig(steps=100, warmup=0.1)
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4) and max(rates) == pytest.approx(1e-3)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[55] == pytest.approx(5e-4) and rates[100] == pytest.approx(0)


def test_long_prompts_lose_their_middle() -> None:
    assert without_middle(range(5), 9) == [0, 1, 2, 3, 4]
    assert without_middle(range(10), 5) == [0, 1, 7, 8, 9]


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch_size": 0}, {"warmup": 1.0}, {"learning_rate": 0.0}]
)
def test_hyper_parameters_are_checked(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        TrainingConfig(**wrong)  # type: ignore[arg-type]


def test_the_loss_falls_and_is_recorded(tmp_path: Path) -> None:
    trainer = make_trainer(str(tmp_path), 12, learning_rate=2e-2, eval_every=4, eval_samples=2)
    trainer.held_out = trainer.samples
    result = trainer.run()
    assert sum(result.losses[-3:]) < 0.9 * sum(result.losses[:3])
    assert [step for step, _ in result.evaluations] == [4, 8, 12]
    lines = (tmp_path / "loss.csv").read_text().splitlines()
    assert len(lines) == 13 and lines[4].count(",") == 2 and not lines[4].endswith(",")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    final = load_modules(tmp_path)
    assert all(
        torch.equal(a, b)
        for a, b in zip(final.parameters(), trainer.modules.parameters(), strict=True)
    )


def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    subprocess.run(
        [*command, str(SCRIPT), str(tmp_path / "two"), "3", "0"], env=ENVIRONMENT, check=True
    )
    make_trainer(str(tmp_path / "one"), 3).run()
    one, two = (load_file(tmp_path / name / "lookahead.safetensors") for name in ("one", "two"))
    # Adam's first steps are the gradient's sign times the rate: a wrong gradient shows at once.
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """Killed with SIGKILL at several moments, one of them likely inside of a checkpoint."""
    steps = 14
    make_trainer(str(tmp_path / "whole"), steps).run()
    expected = (tmp_path / "whole" / "lookahead.safetensors").read_bytes()
    output = tmp_path / "killed"
    command = [sys.executable, str(SCRIPT), str(output), str(steps), "0.05"]
    for wanted in (2, 6):
        process = subprocess.Popen(command, env=ENVIRONMENT)
        deadline = time.monotonic() + 120
        while (path := latest(output)) is None or int(path.name[5:]) < wanted:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (output / "config.json").exists()  # it was not at its end
    subprocess.run(command, env=ENVIRONMENT, check=True)
    assert (output / "lookahead.safetensors").read_bytes() == expected


def test_half_a_checkpoint_is_none(tmp_path: Path) -> None:
    make_trainer(str(tmp_path), 2).run()
    (tmp_path / ".step-000004.partial").mkdir()
    found = latest(tmp_path)
    assert found is not None and found.name == "step-000002"
    state = json.loads((found / "state.json").read_text())
    assert state["step"] == 2 and len(state["losses"]) == 2


def test_other_hyper_parameters_do_not_resume(tmp_path: Path) -> None:
    make_trainer(str(tmp_path), 2).run()
    with pytest.raises(ValueError, match="other hyper-parameters"):
        make_trainer(str(tmp_path), 4).run()


def test_a_damaged_checkpoint_is_an_error(tmp_path: Path) -> None:
    make_trainer(str(tmp_path), 2).run()
    weights = tmp_path / "step-000002" / "lookahead.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ValueError, match="damaged"):
        make_trainer(str(tmp_path), 2).run()
