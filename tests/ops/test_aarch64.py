"""The CPU kernels for AArch64, under emulation: what chooses them, what they compute, their code.

Scores are compared with double precision, and choices with those of every other processor
(``check_fixed_indices`` in tests/cpp/check_select.cpp). The same under sanitizers:
test_sanitizers.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.aarch64 import (
    TOOLCHAIN,
    checked_isas,
    emulated,
    needs_cross_compiler,
    needs_emulator,
)
from support.build_tools import ROOT, checked, cmake_build, passed_checks, tool

pytestmark = [pytest.mark.slow, needs_cross_compiler]
NM = "aarch64-linux-gnu-nm"
READELF = "aarch64-linux-gnu-readelf"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with kernel_check and the objects of its kernels."""
    folder = tmp_path_factory.mktemp("aarch64")
    cmake_build(
        ROOT,
        folder,
        TOOLCHAIN,
        "-DLOOKAHEADKV_OPS=OFF",
        "-DLOOKAHEADKV_NUMPY=OFF",
        "-DLOOKAHEADKV_KERNEL_CHECK=ON",
        "-DLOOKAHEADKV_WERROR=ON",
        target="kernel_check",
    )
    return folder


@needs_emulator
@pytest.mark.parametrize(
    ("cpu", "named", "expected"),
    [
        ("max", ["neon_bf16"], ["neon_bf16"]),
        ("cortex-a72", [], ["neon", "portable"]),  # has no bf16
    ],
)
def test_kernels(build: Path, cpu: str, named: list[str], expected: list[str]) -> None:
    output = emulated(cpu, build / "kernel_check", "--brief", *named)
    assert checked_isas(output) == expected
    assert passed_checks(output) > 5000


def test_instruction_sets_stay_in_their_files(build: Path) -> None:
    """As in tests/packaging/test_wheel.py: only the dispatcher may reach code for a newer CPU."""
    for name in ("neon", "neon_bf16"):
        (path,) = build.glob(f"**/csrc/cpu/isa/{name}.cpp.o")
        lines = checked([tool(NM), "--defined-only", path]).splitlines()
        assert [line for line in lines if line.split()[-2] in "TWVu"] == [], path.name
        assert ".init_array" not in checked([tool(READELF), "--sections", "--wide", path])


def test_op_library_compiles(tmp_path: Path) -> None:
    """Its own sources, with the headers of this torch; linking needs a torch for AArch64."""
    objects = ("csrc/schema.cpp", "csrc/torch/cpu_facts.cpp", "csrc/cpu/backend.cpp")
    for source in objects:
        cmake_build(
            ROOT,
            tmp_path,
            TOOLCHAIN,
            "-DLOOKAHEADKV_CUDA=off",
            "-DLOOKAHEADKV_NUMPY=OFF",
            "-DLOOKAHEADKV_WERROR=ON",
            f"-DLOOKAHEADKV_TORCH_DIR={Path(torch.__file__).parent}",
            target=f"CMakeFiles/lookaheadkv_cpu.dir/{source}.o",
        )
