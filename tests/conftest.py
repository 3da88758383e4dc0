"""Fixtures shared by all tests: the backend under test, its device, and one seed per test."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# For bench.peers. Appended, so that the installed package wins over the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

BACKENDS = ("cpu",)


def _base_seed() -> int:
    return int(os.environ.get("LOOKAHEADKV_TEST_SEED", "0"))


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
    return torch.device("cpu" if backend == "cpu" else "cuda")


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """Leaves torch's thread count as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
