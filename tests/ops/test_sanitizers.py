"""The CPU kernels under AddressSanitizer and UBSan, AMX and AArch64 emulated."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.aarch64 import (
    TOOLCHAIN,
    checked_isas,
    emulated,
    needs_cross_compiler,
    needs_emulator,
)
from support.build_tools import checked, passed_checks, sanitized_check


@pytest.mark.slow
def test_kernels_under_sanitizers(tmp_path: Path) -> None:
    program = sanitized_check(tmp_path, "kernel_check", "-DLOOKAHEADKV_AMX_EMULATE=ON")
    assert passed_checks(checked([program])) > 1000


@pytest.mark.slow
@needs_cross_compiler
@needs_emulator
def test_kernels_for_aarch64_under_sanitizers(tmp_path: Path) -> None:
    program = sanitized_check(tmp_path, "kernel_check", TOOLCHAIN)
    output = emulated("max", program, "--brief", "neon_bf16", "neon")
    assert checked_isas(output) == ["neon_bf16", "neon"]
    assert passed_checks(output) > 5000
