"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, AMX emulated."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.build_tools import ROOT, checked, cmake_build


@pytest.mark.slow
def test_kernels_under_sanitizers(tmp_path: Path) -> None:
    cmake_build(
        ROOT,
        tmp_path,
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        "-DLOOKAHEADKV_OPS=OFF",
        "-DLOOKAHEADKV_NUMPY=OFF",
        "-DLOOKAHEADKV_KERNEL_CHECK=ON",
        "-DLOOKAHEADKV_AMX_EMULATE=ON",
        "-DLOOKAHEADKV_SANITIZE=ON",
        target="kernel_check",
    )
    output = checked([tmp_path / "kernel_check"])
    summary = re.search(r"(\d+) passed, 0 failed", output)
    assert summary is not None, output
    assert int(summary[1]) > 1000
