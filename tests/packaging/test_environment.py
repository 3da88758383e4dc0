"""Environment variables: one table of them, checked at import; one logger."""

from __future__ import annotations

import logging
import re
import sys

import pytest
from support.build_tools import ROOT, checked, run

from lookaheadkv_kernels import info
from lookaheadkv_kernels._environment import PREFIX, VARIABLES, check

NAMES = [variable.name for variable in VARIABLES]
IMPORT = [sys.executable, "-c", "import lookaheadkv_kernels"]


def sources(*patterns: str) -> dict[str, str]:
    paths = {path for pattern in patterns for path in ROOT.glob(pattern)}
    return {str(path.relative_to(ROOT)): path.read_text() for path in sorted(paths)}


def test_every_variable_that_is_read_is_in_the_table() -> None:
    texts = sources(
        *("lookaheadkv_kernels/**/*.py", "tests/**/*.py", "bench/**/*.py", "examples/*.py"),
        *("setup.py", "cmake/*.py", "hub/*.py", "csrc/**/*.cpp", "csrc/**/*.h", "csrc/**/*.cu"),
    )
    read = re.compile(
        r"(?:environ(?:\.get|\.setdefault)?[\[(]|getenv\(|switch\(|_VARIABLE = |\bname = )"
        rf'"({PREFIX}\w+)"'
    )
    found = {name for text in texts.values() for name in read.findall(text)}
    assert found == set(NAMES)


def test_the_page_shows_the_table() -> None:
    page = (ROOT / "docs" / "environment.md").read_text()
    rows = [row for row in page.splitlines() if row.startswith("| `")]
    assert rows == [
        f"| `{v.name}` | {v.read} | {v.values} | {v.default} | {v.text} |" for v in VARIABLES
    ]


def test_the_table_has_every_instruction_set() -> None:
    (isa,) = [variable for variable in VARIABLES if variable.name == "LOOKAHEADKV_CPU_ISA"]
    listed = isa.values.split(", ")
    assert set(info.supported_isas()) <= set(listed)
    text = "".join(sources("csrc/cpu/isa/*.cpp").values())
    assert all(f'"{name}"' in text for name in listed)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("LOOKAHEADKV_BACKEND", "tpu", "backend must be one of cuda, triton, cpu, got 'tpu'"),
        ("LOOKAHEADKV_BACKEND", "triton", "backend 'triton' is not available here"),
        ("LOOKAHEADKV_CPU_ISA", "mmx", "must be one of .*portable.* got mmx"),
    ],
)
def test_what_cannot_be_is_an_error_at_import(name: str, value: str, message: str) -> None:
    result = run(IMPORT, env={name: value})
    assert result.returncode != 0
    assert re.search(f"Error: {name}.* ?{message}", result.stderr), result.stderr


def test_an_unknown_name_is_told_with_the_one_that_is_meant() -> None:
    result = run(IMPORT, env={"LOOKAHEADKV_BACKENDS": "cuda", "LOOKAHEADKV_SEED": "1"})
    assert result.returncode == 0
    first, second = result.stderr.strip().splitlines()
    assert first == (
        "the environment variable LOOKAHEADKV_BACKENDS is not known; is LOOKAHEADKV_BACKEND meant?"
    )
    assert second.startswith("the environment variable LOOKAHEADKV_SEED is not known")


def test_empty_values_are_none() -> None:
    empty = {name: "" for name in ("LOOKAHEADKV_BACKEND", "LOOKAHEADKV_CPU_ISA")}
    assert checked(IMPORT, env=empty) == ""


def test_messages_have_one_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LOOKAHEADKV_OTHER", "1")
    with caplog.at_level(logging.WARNING):
        check()
    assert {record.name for record in caplog.records} == {"lookaheadkv_kernels"}
    texts = sources("lookaheadkv_kernels/**/*.py")
    assert [name for name, text in texts.items() if "getLogger(" in text] == [
        "lookaheadkv_kernels/_log.py"
    ]
    # Only the commands print.
    printing = {name for name, text in texts.items() if re.search(r"\bprint\(", text)}
    places = ("lookaheadkv_kernels/cli.py", "lookaheadkv_kernels/commands/")
    assert all(name.startswith(places) for name in printing), printing
