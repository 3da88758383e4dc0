"""Options of `pytest bench/`, what its tests share, and the report at the end."""

from __future__ import annotations

import functools
import json
import random
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lookaheadkv_kernels as lkv
from bench import machine, suite
from bench.cases import LLAMA_8B, PROMPTS, Point, grid
from bench.clock import Calls, gpu_timer
from bench.work import Rates, Work, measure_rates, usual_dtype
from lookaheadkv_kernels.triton.target import interpreting

RESULTS = pytest.StashKey[list[suite.Result]]()
SEED = pytest.StashKey[int]()
NUM_INPUTS = 2
SETUP_SECONDS = 3.0  # inputs, warming up and memory of a case, about
COMPILE_SECONDS = 20.0  # torch.compile in a case of the whole op, about

Measure = Callable[..., suite.Result]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lookaheadkv")
    group.addoption("--full", action="store_true", help="all shapes, lengths and budgets: hours")
    group.addoption(
        "--prompt",
        type=int,
        action="append",
        default=[],
        metavar="N",
        help="prompt keys to benchmark at (repeatable); without --full, Llama-3.1-8B's shapes",
    )
    group.addoption("--rounds", type=int, help="rounds of every measurement")
    group.addoption(
        "--seconds", type=float, default=1.5, help="of every measurement (default: 1.5)"
    )
    group.addoption("--seed", type=int, help="of the inputs (default: another one every time)")
    group.addoption("--record", type=Path, metavar="FILE", help="write the results there as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []
    seed = config.getoption("--seed")
    config.stash[SEED] = random.SystemRandom().randrange(2**31) if seed is None else seed


def pytest_report_header(config: pytest.Config) -> str:
    return f"inputs: --seed {config.stash[SEED]}"


def compiles(config: pytest.Config, point: Point) -> bool:
    """Whether torch.compile is among the peers there: it takes longer than all the rest.

    In the short set only for Llama-3.1-8B's shape at the first length.
    """
    llama = (point.case.num_heads, point.case.head_dim) == (LLAMA_8B.num_heads, LLAMA_8B.head_dim)
    asked_for = config.getoption("--prompt") or point.num_prompt == PROMPTS[0]
    return bool(config.getoption("--full") or (llama and asked_for))


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> str:
    """How long the run will take: nothing is printed while a case is measured."""
    points: list[tuple[str, Any]] = [
        (item.name.partition("[")[0], item.callspec.params["point"])
        for item in items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
    ]
    cases = len(points)
    compiled = sum(
        name == "test_score_and_evict" and compiles(config, point) for name, point in points
    )
    seconds = cases * (config.getoption("--seconds") + SETUP_SECONDS) + compiled * COMPILE_SECONDS
    return f"{cases} cases, about {max(1, round(seconds / 60))} min on an idle machine"


def backends() -> list[Any]:
    """Every backend that runs at full speed here; on a GPU the timer uses events."""
    found = []
    for name in lkv.available_backends():
        if name == "cpu":
            found.append(pytest.param(name))
        elif not interpreting():
            found.append(pytest.param(name, marks=pytest.mark.benchmark(timer=gpu_timer)))
    return found


def dtypes() -> list[torch.dtype]:
    """What is measured: the usual dtype first, and float32."""
    on_gpu = any(name != "cpu" for name in lkv.available_backends()) and not interpreting()
    return list(dict.fromkeys([usual_dtype("cuda" if on_gpu else "cpu"), torch.float32]))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = metafunc.fixturenames
    if "point" not in names:
        return
    config = metafunc.config
    points = grid(config.getoption("--full"), config.getoption("--prompt"), dtypes())
    if "budget" in names:
        pairs = [(point, budget) for point in points for budget in point.budgets]
        ids = [f"{point.label}-budget{budget}" for point, budget in pairs]
        metafunc.parametrize("point, budget", pairs, ids=ids)
    else:
        metafunc.parametrize("point", points, ids=[point.label for point in points])
    metafunc.parametrize("backend", backends(), indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend that the test's calls go to."""
    lkv.set_backend(request.param)
    yield request.param
    lkv.set_backend(None)


@pytest.fixture
def device(backend: str) -> str:
    return "cpu" if backend == "cpu" else "cuda"


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> list[int]:
    """Of the sets of inputs that a test goes through in turn."""
    first = request.config.stash[SEED]
    return [first + number for number in range(NUM_INPUTS)]


@functools.cache
def rates_of(device: str, dtype: torch.dtype) -> Rates:
    return measure_rates(device, dtype)


@pytest.fixture
def measure(
    request: pytest.FixtureRequest, benchmark: Any, point: Point, backend: str, device: str
) -> Measure:
    """Times our calls beside their peers and keeps the result for the report."""
    config = request.config

    def run(
        room: str,
        ours: Calls,
        peers: dict[str, Calls],
        work: Work,
        budget: int | None = None,
    ) -> suite.Result:
        result = suite.measure(
            benchmark,
            room,
            backend,
            point,
            budget,
            ours,
            peers,
            work,
            rates_of(device, point.dtype),
            rounds=config.getoption("--rounds"),
            seconds=config.getoption("--seconds"),
        )
        config.stash[RESULTS].append(result)
        return result

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    results = config.stash[RESULTS]
    if not results:
        return
    terminalreporter.section("ours, its floor, and how many times as long the peers took (95 %)")
    for result in results:
        row = result.as_dict()
        terminalreporter.write_line(
            f"{result.room} [{result.backend}] {result.name}: {1e6 * result.seconds:.1f} us, "
            f"floor {1e6 * row['floor_seconds']:.1f} us ({row['percent_of_floor']:.0f} % of it), "
            f"{result.peak_extra_bytes / 2**20:.1f} MiB"
        )
        for name, peer in result.peers.items():
            terminalreporter.write_line(
                f"    {peer.ratio!s:24} {name}, {peer.peak_extra_bytes / 2**20:.1f} MiB"
            )


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    path, results = config.getoption("--record"), config.stash[RESULTS]
    if path is None or not results:
        return
    device = "cpu" if all(result.backend == "cpu" for result in results) else "cuda"
    command = shlex.join(["pytest", *map(str, config.invocation_params.args)])
    record = {
        "kind": "suite",
        **machine.facts(device, command),
        "seed": config.stash[SEED],
        "results": [result.as_dict() for result in results],
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
