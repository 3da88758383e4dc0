"""Options of `pytest bench/`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--prompt",
        type=int,
        action="append",
        metavar="N",
        help="prompt keys to benchmark at (repeatable; default: 4096)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "num_prompt" in metafunc.fixturenames:
        lengths = metafunc.config.getoption("--prompt") or [4096]
        metafunc.parametrize("num_prompt", lengths, ids=[f"N{length}" for length in lengths])
