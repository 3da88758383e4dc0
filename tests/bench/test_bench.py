"""The latency suite, TTFT and their page, end to end on tiny shapes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.build_tools import ROOT, checked
from support.eviction_model import tiny

from bench import report, work
from bench.cases import BUDGETS, PROMPTS, Case, grid, paper_shapes
from bench.memory import peak_extra_bytes
from bench.text import DOCS

PEERS = {
    "attention": {"sdpa + eager scores", "sdpa alone"},
    "scores": {"eager", "row-parallel", "column-parallel"},
    "select": {"max_pool1d + topk + sort"},
    "gather": {"torch.gather"},
    "score_and_evict": {"eager", "kvpress SnapKV", "row-parallel + topk", "torch.compile"},
    "score_and_evict, lse given": {"eager", "column-parallel + topk"},
}


@pytest.fixture(scope="module")
def suite_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `pytest bench/ --record` writes; torch.compile itself is tests/bench/test_peers.py's."""
    pytest.importorskip("pytest_benchmark")
    folder = tmp_path_factory.mktemp("suite")
    checked(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "bench/"),
            *("--prompt", "128", "--rounds", "3", "--record", folder / "run.json"),
            *("--benchmark-json", folder / "benchmark.json"),
        ],
        cwd=ROOT,
        env={
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "TORCHDYNAMO_DISABLE": "1",
        },
    )
    run: dict[str, Any] = json.loads((folder / "run.json").read_text())
    plain = json.loads((folder / "benchmark.json").read_text())["benchmarks"]
    # pytest-benchmark's own file carries the same beside its own statistics.
    assert [entry["extra_info"] for entry in plain] == run["results"]
    return {**run, "name": "suite"}


def test_suite_times_every_room_beside_its_peers(suite_run: dict[str, Any]) -> None:
    found = {result["room"]: set(result["peers"]) for result in suite_run["results"]}
    assert found == PEERS
    for result in suite_run["results"]:
        assert result["backend"] == "cpu" and result["num_prompt"] == 128
        assert result["rounds"] == 3 and result["seconds"] > 0
        assert result["bytes"] > 0 and result["floor_seconds"] > 0
        assert result["percent_of_floor"] == pytest.approx(
            max(result["percent_of_copy_bandwidth"], result["percent_of_gemm_rate"])
        )
        for peer in result["peers"].values():
            assert peer["low"] <= peer["ratio"] <= peer["high"]
    assert suite_run["seed"] >= 0 and suite_run["torch"] == torch.__version__


def test_grid_has_the_papers_models_lengths_and_budgets() -> None:
    assert sum(models.count("+") + 1 for models in paper_shapes()) == 6
    full = grid(full=True)
    assert {point.num_prompt for point in full} == set(PROMPTS)
    assert all(point.budgets == BUDGETS for point in full)
    assert {point.models for point in full} == set(paper_shapes())
    assert len(grid(full=False)) < 8
    assert [point.num_prompt for point in grid(False, [100, 200])] == [100, 200]


def test_work_counts_bytes_and_flops() -> None:
    case = Case(
        num_heads=4, num_kv_heads=2, head_dim=8, num_rows=3, num_prompt=10, dtype=torch.float32
    )
    query, key, scores, lse = 4 * 3 * 8 * 4, 2 * 13 * 8 * 4, 2 * 10 * 4, 4 * 3 * 4
    kept, indices = 2 * 2 * 5 * 8 * 4, 2 * 5 * 4
    products = 2 * 4 * 3 * 13 * 8
    assert work.attention_work(case) == work.Work(2 * query + 2 * key + lse + scores, 2 * products)
    assert work.scores_work(case) == work.Work(query + key + lse + scores, products)
    assert work.select_work(case, 5) == work.Work(scores + indices, 0)
    assert work.gather_work(case, 5) == work.Work(2 * kept + indices, 0)
    assert work.evict_work(case, 5) == work.Work(
        query + key + scores + 2 * kept + indices, products
    )
    rates = work.Rates(100.0, 10.0)
    assert rates.floor(work.Work(200, 5)) == 2.0
    assert rates.floor(work.Work(200, 50)) == 5.0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_extra_memory_is_seen() -> None:
    taken = peak_extra_bytes(lambda: torch.ones(2**24).sum())
    assert 0.9 * 2**26 < taken < 1.5 * 2**26


@pytest.fixture(scope="module")
def ttft_run() -> dict[str, Any]:
    """What `python -m bench.ttft --json` writes, for a tiny model."""
    from bench import ttft
    from bench.ttft_methods import Models
    from lookaheadkv_kernels.integrations.transformers.attention import attach

    models = Models("tiny", tiny(), tiny())
    attach(models.target)
    rows = ttft.measure_prefill(models, 80, 40, rounds=3, slow_rounds=2)
    speed = ttft.measure_decoding(models, 80, 40, steps=3)
    paper = {"lookaheadkv": (141, 11.38), "forward": (130, None)}
    return {
        "kind": "ttft",
        "name": "ttft",
        "date": "2026-01-01",
        "commit": "c",
        "command": "python -m bench.ttft",
        "device": "d",
        "torch": torch.__version__,
        "model": "tiny",
        "dtype": "float32",
        "budget": 40,
        "results": json.loads(json.dumps({80: {"methods": rows, "decode": speed, "paper": paper}})),
    }


def test_ttft_times_every_method_and_decoding(ttft_run: dict[str, Any]) -> None:
    found = ttft_run["results"]["80"]
    assert list(found["methods"]) == [
        "forward",
        "full cache",
        "lookaheadkv",
        "lookaheadkv extend",
        "snapkv",
        "laq",
        "speckv",
        "eager",
    ]
    rounds = {name: row["rounds"] for name, row in found["methods"].items()}
    assert rounds["lookaheadkv"] == 3 and rounds["laq"] == 2
    assert found["methods"]["forward"]["overhead"]["percent"] == 0
    # Both write drafts of 32 tokens.
    for name in ("laq", "speckv"):
        assert found["methods"][name]["overhead"]["percent_low"] > 100
    assert set(found["decode"]) == {"forward", "full cache", "lookaheadkv"}
    assert all(row["tokens_per_second"] > 0 for row in found["decode"].values())


def test_page_and_pictures(
    suite_run: dict[str, Any], ttft_run: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    from bench.plots import draw

    longer = [{**result, "num_prompt": 256} for result in suite_run["results"]]
    runs = [{**suite_run, "results": suite_run["results"] + longer}, ttft_run]
    plots = {
        report.stem_of(run): [p.name for p in draw(run, tmp_path, run["kind"])] for run in runs
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "suite--floors.png",
        "suite--growth.png",
        "suite--memory.png",
        "suite--ratios.png",
        "ttft--first-token.png",
    ]
    page = report.page(runs, plots)
    assert "](suite--growth.png)" in page and "](ttft--first-token.png)" in page
    assert f"## {suite_run['device']}" in page
    for room in PEERS:
        assert f"**{room}**" in page
    assert "| 141 | 11.38 |" in page
    eager = suite_run["results"][-1]["peers"]["eager"]
    assert f"{eager['ratio']:.2f}x [{eager['low']:.2f}, {eager['high']:.2f}]" in page


def test_page_is_what_the_measurements_say() -> None:
    runs = report.load(report.MEASUREMENTS)
    written = (DOCS / "performance.md").read_text()
    assert runs
    assert written == report.page(runs, report.drawn_plots(runs))


def test_runs_are_kept_by_machine_and_name(tmp_path: Path) -> None:
    folder = tmp_path / "measurements"
    folder.mkdir()
    for name, device, date in (
        ("b", "D 1", "1"),
        ("a", "D 1", "2"),
        ("b", "E", "3"),
        ("b", "D 1", "4"),
    ):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps({"kind": "bars", "device": device, "date": date}))
        report.add(folder, [file])
    found = [(run["device"], run["name"], run["date"]) for run in report.load(folder)]
    assert found == [("D 1", "a", "2"), ("D 1", "b", "4"), ("E", "b", "3")]
    assert sorted(path.name for path in folder.iterdir()) == ["d-1.json", "e.json"]


def test_page_of_the_packaged_modules_is_what_their_results_say() -> None:
    pytest.importorskip("tqdm")
    from bench import method_report

    assert (DOCS / "smollm2.md").read_text() == method_report.page()
