"""Running build tools in tests."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> str:
    """A program of this environment (which need not be on PATH), or else of the machine."""
    path = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    assert path is not None, f"{name} is not installed"
    return path


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program with these variables on top of the environment; its output is captured.

    It does not see that pytest-xdist runs this process: pytest-benchmark would measure nothing.
    """
    own = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(
        command, cwd=cwd, env={**own, **(env or {})}, capture_output=True, text=True
    )


def checked(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Like :func:`run`, but failing with the program's output; returns its stdout."""
    result = run(command, cwd=cwd, env=env)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Keeps other processes of this test run from doing the same in the source tree."""
    folder = ROOT / "build"
    folder.mkdir(exist_ok=True)
    with (folder / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cmake_build(source: Path, build: Path, *definitions: str, target: str = "all") -> None:
    """Configure a CMake project with Ninja and build one target."""
    ninja = f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"
    checked([tool("cmake"), "-S", source, "-B", build, "-G", "Ninja", ninja, *definitions])
    checked([tool("cmake"), "--build", build, "--target", target])


def sanitized_check(build: Path, target: str, *definitions: str) -> Path:
    """Build a program of tests/cpp under AddressSanitizer and UBSan; returns its path."""
    cmake_build(
        ROOT,
        build,
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        "-DLOOKAHEADKV_OPS=OFF",
        "-DLOOKAHEADKV_NUMPY=OFF",
        "-DLOOKAHEADKV_KERNEL_CHECK=ON",
        "-DLOOKAHEADKV_SANITIZE=ON",
        *definitions,
        target=target,
    )
    return build / target


def passed_checks(output: str) -> int:
    """How many checks such a program passed; all of them must have."""
    summary = re.search(r"(\d+) passed, 0 failed", output)
    assert summary is not None, output
    return int(summary[1])
