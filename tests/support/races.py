"""The programs of tests/cpp in which races of the emulated CUDA kernels are looked for."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .build_tools import ROOT, checked, cmake_build, run, tool

KERNELS = ROOT / "csrc" / "cuda"
# They have no CPU kernels but the portable ones, whichever the environment asks for.
ENVIRONMENT = {"LOOKAHEADKV_CPU_ISA": "portable"}

# Every instruction that orders something, as kernels write it, and what may be wrong with it
# (tests/cpp/cuda_emulation/faults.h).
FAULTS = {
    r"\bsync_threads\(\)": ("no-barrier",),
    r"\bstart_kernel\(\)": ("no-kernel-wait",),
    r"\bwait_copies<": ("no-copy-wait", "short-copy-wait"),
    r"\bcommit_copies\(\)": ("no-commit",),
    r"\bpublish\(": ("no-release",),
    r"\barrive\(": ("no-release", "no-acquire"),
    r"\bwait_until_published\(": ("no-wait", "no-acquire"),
}
NO_KERNELS = ("ptx.cuh", "launch.cuh")  # they define these instructions


def build(folder: Path, target: str) -> Path:
    """Build ``cuda_kernel_check`` or its small part ``cuda_race_check``; returns its path."""
    cmake_build(
        ROOT,
        folder,
        "-DCMAKE_BUILD_TYPE=Release",
        "-DLOOKAHEADKV_OPS=OFF",
        "-DLOOKAHEADKV_NUMPY=OFF",
        "-DLOOKAHEADKV_KERNEL_CHECK=ON",
        "-DLOOKAHEADKV_RACES=ON",
        target=target,
    )
    return folder / target


def run_check(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run such a program, whatever comes of it; places in its reports get names."""
    result = run([program, *arguments], env=ENVIRONMENT)
    result.stdout = with_names(program, result.stdout)
    return result


def accesses(output: str) -> int:
    """How many accesses of kernels were looked at."""
    return sum(int(number) for number in re.findall(r"(\d+) accesses looked at", output))


def with_names(program: Path, output: str) -> str:
    """Replace the places in the program that reports name by functions and lines."""
    places = sorted(set(re.findall(r"\b(?:at|in) (0x[0-9a-f]+)", output)))
    if not places:
        return output
    names = checked(
        [tool("addr2line"), "-e", program, "--functions", "--demangle", "--basenames", *places]
    ).splitlines()
    for place, function, line in zip(places, names[::2], names[1::2], strict=True):
        short = re.sub(r"\(.*|<.*", "", function.removeprefix("void "))
        output = re.sub(rf"\b{place}\b", f"{line} ({short.rpartition('::')[2]})", output)
    return output


@dataclass(frozen=True, order=True)
class Fault:
    """One instruction of a kernel that orders less than it should."""

    file: str
    line: int
    what: str

    @property
    def option(self) -> str:
        """What plants it."""
        return f"--fault={self.what}:{self.file}:{self.line}"


def possible_faults() -> Iterator[Fault]:
    """Every instruction of a kernel that orders something, by the sources."""
    for path in sorted(KERNELS.glob("*.cu*")):
        if path.name in NO_KERNELS:
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code = line.partition("//")[0]
            for pattern, kinds in FAULTS.items():
                if re.search(pattern, code):
                    yield from (Fault(path.name, number, kind) for kind in kinds)


def reached_faults(output: str) -> set[Fault]:
    """Those that a program run with ``--faults`` could have planted in kernels."""
    found = re.findall(r"^fault ([a-z-]+):([\w.]+):(\d+)$", output, re.MULTILINE)
    names = {path.name for path in KERNELS.iterdir()}
    return {Fault(file, int(line), what) for what, file, line in found if file in names}


@dataclass(frozen=True)
class Edit:
    """A fault planted by hand in one file of the kernels."""

    what: str
    file: str
    sources: tuple[str, ...]  # the .cu files to compile again
    changes: tuple[tuple[str, str], ...]

    def edited(self) -> str:
        """The file with the fault; each text to change has to be there."""
        text = (KERNELS / self.file).read_text()
        for old, new in self.changes:
            assert old in text, f"{self.file} no longer has {old!r}: plant {self.what!r} anew"
            text = text.replace(old, new)
        return text


def build_edited(program: Path, edit: Edit, folder: Path) -> Path:
    """Build the program anew with one file edited; returns the path of the new one."""
    (folder / "cuda").mkdir(parents=True)
    (folder / "cuda" / edit.file).write_text(edit.edited())
    *commands, link = checked(
        [tool("ninja"), "-t", "commands", program.name], cwd=program.parent
    ).splitlines()
    linked = link.removeprefix(": && ").removesuffix(" && :").split()
    for source in edit.sources:
        path = folder / "cuda" / source if source == edit.file else KERNELS / source
        words = next(line for line in commands if f"-c {KERNELS / source}" in line).split()
        output = words.index("-o") + 1
        edited = str(folder / f"{source}.o")
        linked[linked.index(words[output])] = edited
        words[output] = edited
        words[words.index("-c") + 1] = str(path)
        # Behind the emulation's own headers, before those of csrc.
        words.insert(words.index(f"-I{ROOT / 'csrc'}"), f"-I{folder}")
        checked(words, cwd=program.parent)
    linked[linked.index("-o") + 1] = str(folder / program.name)
    checked(linked, cwd=program.parent)
    return folder / program.name
