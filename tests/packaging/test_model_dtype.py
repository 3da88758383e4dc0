"""The default of ``--dtype``: bfloat16, but float32 where a CPU has no instructions for it."""

from __future__ import annotations

import argparse
import platform
import sys
from typing import Any

import pytest
import torch
from support.build_tools import checked

from lookaheadkv_kernels import cli
from lookaheadkv_kernels.commands import evaluate, generate_responses, inspect, options, train

MODEL = ["--model", "nothing"]
OUTPUT = ["--output", "nowhere"]
COMMANDS: list[tuple[Any, list[str]]] = [
    (evaluate, ["eval", *MODEL, *OUTPUT, "--task", "vt"]),
    (train, ["train", *MODEL, *OUTPUT, "--data", "recipe"]),
    (inspect, ["inspect", *MODEL, *OUTPUT, "--prompt", "text"]),
    (generate_responses, ["generate-responses", *MODEL, "none.jsonl", "nowhere.jsonl"]),
]


@pytest.mark.parametrize(
    ("command", "arguments"), COMMANDS, ids=[arguments[0] for _, arguments in COMMANDS]
)
@pytest.mark.parametrize(
    ("multiplies", "more", "expected"),
    [
        (True, [], "bfloat16"),
        (False, [], "float32"),
        (False, ["--dtype", "auto"], "float32"),
        (False, ["--dtype", "bfloat16"], "bfloat16"),
        (True, ["--dtype", "float16"], "float16"),
        (False, ["--device", "cuda:1"], "bfloat16"),
    ],
)
def test_of_a_command(
    command: Any,
    arguments: list[str],
    multiplies: bool,
    more: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []

    def run(parsed: argparse.Namespace) -> int:
        seen.append(parsed.dtype)
        return 0

    monkeypatch.setattr(options, "multiplies_bf16", lambda: multiplies)
    monkeypatch.setattr(command, "run", run)
    assert cli.main([*arguments, *more]) == 0
    assert seen == [expected]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="hides instruction sets of x86")
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_a_cpu_whose_newer_instructions_are_hidden() -> None:
    script = "from lookaheadkv_kernels import info; print(info.multiplies_bf16())"
    output = checked([sys.executable, "-c", script], env={"ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert output == "False\n"
