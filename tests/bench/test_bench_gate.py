"""The gate against slowdowns: it sees 1.5x, and is quiet five times in a row where there is none.

The work is real and its amount is chosen: so many bytes hashed, so many keys scored.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.build_tools import ROOT, checked

import lookaheadkv_kernels as lkv
from bench import compare, gate
from bench.cases import Case
from bench.clock import WallClock
from bench.gate import Gated, Stored
from bench.ratios import judge, median_ratio

Work = Callable[[float], Callable[[], object]]  # amount -> a call that does so much
PLANTED = 1.5


def hashing() -> Work:
    """About a millisecond at an amount of 1."""
    data = bytes(2**24)
    start = time.perf_counter()
    hashlib.sha256(data)
    unit = int(len(data) * 1e-3 / (time.perf_counter() - start))
    return lambda amount: lambda: hashlib.sha256(memoryview(data)[: int(amount * unit)])


def scoring() -> Work:
    """The op itself, over more keys."""
    query, key, value = Case(num_heads=4, num_kv_heads=1, num_prompt=24_000).inputs()
    lse = lkv.lookahead_attention(query, key, value).lse

    def of(amount: float) -> Callable[[], object]:
        keys = key[:, :, : int(16_000 * amount)]
        return lambda: lkv.column_scores(query, keys, lse)

    return of


@pytest.fixture(params=[hashing, scoring])
def work(request: pytest.FixtureRequest) -> Work:
    return request.param()


@pytest.fixture(autouse=True)
def _one_thread(restore_threads: None) -> None:
    """A second thread would wait for whatever else runs here."""
    torch.set_num_threads(1)


def verdict(work: Work, ours: float, peer: float, stored: float | None) -> bool:
    """Whether the gate finds our amount of work too slow beside the peer's."""
    baseline = {} if stored is None else {"work": Stored(stored, 0.0)}
    call = Gated("work", work(ours), work(peer), most=1 / 1.25)
    return gate.check([call], baseline, "cpu")["work"].slow


def test_planted_slowdown_is_caught_by_a_stored_baseline(work: Work) -> None:
    assert verdict(work, 0.5 * PLANTED, 1.0, stored=0.5)


def test_five_clean_runs_against_a_stored_baseline_pass(work: Work) -> None:
    assert not any(verdict(work, 0.5, 1.0, stored=0.5) for _ in range(5))


def test_planted_slowdown_is_caught_by_the_peer_alone(work: Work) -> None:
    assert verdict(work, 0.65 * PLANTED, 1.0, stored=None)
    assert not any(verdict(work, 0.65, 1.0, stored=None) for _ in range(5))


def test_a_gpu_is_held_to_its_own_time_too() -> None:
    work = hashing()
    batch = gate.in_turn(work(1.0), work(1.0), 9, WallClock())
    verdict = judge(batch, 1.2, most_seconds=1e-9, attempts=2)
    assert verdict.slow and verdict.attempts == 2 and verdict.ratio.value < 1.2


def test_a_slow_attempt_is_measured_again() -> None:
    batches = iter([([3.0] * 5, [1.0] * 5), ([1.0] * 5, [1.0] * 5)])
    verdict = judge(lambda: next(batches), 1.2)
    assert not verdict.slow and verdict.attempts == 2 and verdict.ratio.value == 1.0


def test_an_undecided_interval_asks_for_more_rounds() -> None:
    wide = [0.5, 2.0, 1.0, 1.3, 0.9]
    batches = iter([(wide, [1.0] * 5), ([1.0] * 20, [1.0] * 20)])
    assert judge(lambda: next(batches), 1.2).ratio.high == 1.0
    assert next(batches, None) is None


def test_ratio_and_its_interval() -> None:
    noise = torch.rand(40, dtype=torch.float64).tolist()
    slow = [3.0 * (1 + n) for n in noise]
    exact = median_ratio(slow, [1 + n for n in noise])
    assert (exact.low, exact.value, exact.high) == pytest.approx((3.0, 3.0, 3.0))
    wide = median_ratio(slow, [1.0] * 40)
    assert 3.0 < wide.low < wide.value < wide.high < 6.0
    with pytest.raises(ValueError, match="rounds must be pairs, got 2 and 1 of them"):
        median_ratio([1.0, 2.0], [1.0])


def test_figures_are_stored_and_used_on_the_same_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gate, "BASELINES", tmp_path)
    arguments = ["--device", "cpu", "--prompt", "2048", "--rounds", "5"]
    assert gate.main([*arguments, "--record"]) == 0
    (path,) = tmp_path.iterdir()
    data = json.loads(path.read_text())
    assert {"date", "commit", "device", "torch", "cuda"} <= data.keys()
    stored = gate.load(path, "cpu")
    assert set(stored) == {call.name for call in gate.gated_calls("cpu", 64)}
    # With the figures of something a thousand times as quick, every call is too slow.
    for figures in data["calls"].values():
        figures["ratio"] /= 1000
    path.write_text(json.dumps(data))
    capsys.readouterr()
    assert gate.main(arguments) == 1
    assert capsys.readouterr().out.count("TOO SLOW") == len(stored)
    path.write_text(json.dumps({**data, "torch": "1.0"}))
    assert gate.load(path, "cpu") == {}


def copy_of_package(folder: Path, planted: str = "") -> Path:
    """A tree as a checkout of a revision has it, and some code at the package's end."""
    package = folder / "lookaheadkv_kernels"
    shutil.copytree(
        Path(lkv.__file__).parent, package, ignore=shutil.ignore_patterns("weights", "__pycache__")
    )
    with (package / "__init__.py").open("a") as file:
        file.write(planted)
    return folder


SLOWER = """
_plain = column_scores


def column_scores(query, key, lse):
    _plain(query, key[:, :, : key.shape[2] // 2], lse)
    return _plain(query, key, lse)
"""


def test_two_revisions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees = [
        str(copy_of_package(tmp_path / "a")),
        str(copy_of_package(tmp_path / "b", SLOWER)),
    ]
    path = tmp_path / "ratios.json"
    options = ["--threads", "1", "--prompt", "4096", "--repeats", "1"]
    calls = ["--call", "scores", "--call", "attention"]
    assert compare.main([*trees, *options, *calls, "--device", "cpu", "--json", str(path)]) == 1
    output = capsys.readouterr().out
    assert "SLOWER" in output.splitlines()[0] and output.count("SLOWER") == 1
    verdicts = json.loads(path.read_text())["verdicts"]
    assert verdicts["scores"]["attempts"] == 3 and verdicts["scores"]["ratio"]["value"] > 1.2


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_a_revision_is_what_was_committed(tmp_path: Path) -> None:
    tree = compare.extract("HEAD", tmp_path)
    committed = checked(["git", "show", "HEAD:bench/compare.py"], cwd=ROOT)
    assert (tree / "bench" / "compare.py").read_text() == committed
    assert compare.extract("HEAD", tmp_path) == tree
    assert compare.checkout(str(tree)) == tree
    with pytest.raises(subprocess.CalledProcessError):
        compare.extract("no-such-revision", tmp_path)
