"""Fixtures shared by all tests: the backend under test, its device, and one seed per test."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import lookaheadkv_kernels as lkv
from lookaheadkv_kernels import triton

ROOT = Path(__file__).resolve().parents[1]
# For bench.peers. Appended, so that the installed package wins over the source tree.
sys.path.append(str(ROOT))

# LOOKAHEADKV_BACKEND=triton runs every test of the ops on Triton's kernels instead: on a GPU, or
# with TRITON_INTERPRET=1 on CPU tensors.
BACKENDS = (os.environ.get("LOOKAHEADKV_BACKEND") or "cpu",)


def _base_seed() -> int:
    value = os.environ.get("LOOKAHEADKV_TEST_SEED") or "0"
    try:
        return int(value)
    except ValueError:
        raise pytest.UsageError(
            f"LOOKAHEADKV_TEST_SEED must be a whole number, got {value!r}"
        ) from None


def pytest_configure(config: pytest.Config) -> None:
    """One thread in a process of pytest-xdist, and a cache of compiled code for this CPU.

    Such a process is there for every core, and what tests start has one thread, too. Tests about
    threads ask for several themselves; without pytest-xdist their number is torch's choice.
    """
    if hasattr(config, "workerinput"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # The cache of compiled code does not tell hidden instruction sets apart: what was compiled
    # where AVX-512 is hidden crashes where it is not. So each capability has its own folder here.
    folder = ROOT / "build" / f"inductor-{torch.backends.cpu.get_cpu_capability().lower()}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """``-n auto``: a process for every core that this one may use; each needs up to 1 GB."""
    return min(8, len(os.sched_getaffinity(0)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cases-per-test",
        type=int,
        default=None,
        help="run at most this many parametrised cases of each test function, evenly spaced",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Thins out the cases, for backends that are slow to run (an interpreter)."""
    limit = config.getoption("--cases-per-test")
    if limit is None:
        return
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept: set[pytest.Item] = set()
    for group in cases.values():
        count = min(limit, len(group))
        kept.update(group[(2 * i + 1) * len(group) // (2 * count)] for i in range(count))
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def pytest_report_header() -> str:
    return f"seed: {_base_seed()} (LOOKAHEADKV_TEST_SEED=<n> for other random inputs)"


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """A seed of its own for every test, the same in every run."""
    value = zlib.crc32(request.node.nodeid.encode()) + _base_seed()
    torch.manual_seed(value)
    return value


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The backend whose kernels the test runs."""
    return str(request.param)


@pytest.fixture
def device(backend: str) -> torch.device:
    """Where that backend's tensors live."""
    if backend == "triton":
        return torch.device(triton.served_device())
    return torch.device(backend)


@pytest.fixture(params=["cuda", "triton"])
def gpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """For tests that need a GPU: they run on each backend that has one."""
    name = str(request.param)
    if name not in lkv.available_backends():
        pytest.skip(f"no {name} backend here")
    lkv.set_backend(name)
    yield name
    lkv.set_backend(None)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """Leaves torch's thread count as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tiny models: they gain nothing from a second thread, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
