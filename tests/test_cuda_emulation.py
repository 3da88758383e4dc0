"""The CUDA kernels' own sources on emulated instructions, under AddressSanitizer and UBSan.

What it cannot see: races between warps (it runs one thread at a time, in two orders), and how the
compiler for GPUs treats the sources (test_cuda_build.py looks at that).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from build_tools import ROOT, checked, cmake_build


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="fibers map their stacks as Linux does")
def test_kernels_on_emulated_instructions(tmp_path: Path) -> None:
    cmake_build(
        ROOT,
        tmp_path,
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        "-DLOOKAHEADKV_OPS=OFF",
        "-DLOOKAHEADKV_NUMPY=OFF",
        "-DLOOKAHEADKV_KERNEL_CHECK=ON",
        "-DLOOKAHEADKV_SANITIZE=ON",
        target="cuda_kernel_check",
    )
    output = checked([tmp_path / "cuda_kernel_check"])
    summary = re.search(r"(\d+) passed, 0 failed", output)
    assert summary is not None, output
    assert int(summary[1]) > 1000
