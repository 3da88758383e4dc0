"""kernel_check for AArch64: built by Debian's cross compiler, run under qemu."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from support.build_tools import ROOT, checked, tool

COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"
TOOLCHAIN = f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'cmake' / 'aarch64-linux-gnu.cmake'}"

needs_cross_compiler = pytest.mark.skipif(
    shutil.which(COMPILER) is None,
    reason=f"needs {COMPILER} (apt-get install g++-aarch64-linux-gnu)",
)
needs_emulator = pytest.mark.skipif(
    shutil.which(EMULATOR) is None, reason=f"needs {EMULATOR} (apt-get install qemu-user)"
)


def emulated(cpu: str, program: Path, *arguments: str) -> str:
    """Output of a program on such a processor."""
    qemu = [tool(EMULATOR), "-cpu", cpu, "-L", "/usr/aarch64-linux-gnu"]
    # LeakSanitizer stops threads by ptrace, which qemu does not emulate.
    return checked([*qemu, program, *arguments], env={"ASAN_OPTIONS": "detect_leaks=0"})


def checked_isas(output: str) -> list[str]:
    """The instruction sets that kernel_check checked."""
    names = re.search(r"^instruction sets:(.*)$", output, re.MULTILINE)
    assert names is not None, output
    return names[1].split()
