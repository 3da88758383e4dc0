"""The CUDA kernels' own sources on emulated instructions, under AddressSanitizer and UBSan.

What it cannot see: races between warps (it runs one thread at a time, in two orders), and how the
compiler for GPUs treats the sources (test_cuda_build.py looks at that).
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.build_tools import checked, passed_checks, sanitized_check

# Parts of about the same length, side by side.
PARTS = (("select",), ("emulation", "splits", "evict", "paged", "prefill", "shapes"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="fibers map their stacks as Linux does")
def test_kernels_on_emulated_instructions(tmp_path: Path) -> None:
    program = sanitized_check(tmp_path, "cuda_kernel_check")
    # It has no CPU kernels but the portable ones, whichever the environment asks for.
    portable = {"LOOKAHEADKV_CPU_ISA": "portable"}
    with ThreadPoolExecutor() as pool:
        outputs = list(pool.map(lambda parts: checked([program, *parts], env=portable), PARTS))
    assert sum(map(passed_checks, outputs)) > 1000
