"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, AMX emulated."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.build_tools import checked, passed_checks, sanitized_check


@pytest.mark.slow
def test_kernels_under_sanitizers(tmp_path: Path) -> None:
    program = sanitized_check(tmp_path, "kernel_check", "-DLOOKAHEADKV_AMX_EMULATE=ON")
    assert passed_checks(checked([program])) > 1000
