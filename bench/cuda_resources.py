"""What the compiled CUDA kernels take of each chip, read from the library: no GPU needed.

`python -m bench.cuda_resources` writes docs/cuda_resources.md from the library that the
installation built; tests/cuda/test_cuda_build.py looks at the same figures.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lookaheadkv_kernels._library import library_path

TABLE = Path(__file__).resolve().parents[1] / "docs" / "cuda_resources.md"
TYPES = {
    "4bf16": "bf16",
    "4fp16": "fp16",
    "8InTensor": "tensor",
    "7InPages": "pages",
    "15InWeightedPages": "weighted pages",
    "f": "fp32",
    "t": "16 bits",
    "j": "32 bits",
}
INSTRUCTIONS = {
    "matrix": r"\bHMMA\.16816",
    "asynchronous copies": r"\bLDGSTS\S*\.128",
    "16-byte loads": r"\bLDG\S*\.128",
    "16-byte stores": r"\bSTG\S*\.128",
    "matrix loads": r"\bLDSM\.",
    "local memory": r"\b(?:LDL|STL)\b",
    "float atomics": r"\b(?:RED|ATOM|ATOMG|ATOMS)\S*\.F(?:16|32|64)",
}


@dataclass(frozen=True)
class Kernel:
    """One kernel for one chip."""

    arch: str  # "sm_80"
    symbol: str
    registers: int  # per thread
    stack: int  # bytes per thread: spilled registers, mostly

    @property
    def name(self) -> str:
        """`attention_mma_kernel<bf16, 128, 1>` from the mangled symbol."""
        # _ZN, then <length><name> for every scope, then I <template arguments> E.
        name, rest = "", self.symbol.removeprefix("_ZN")
        while match := re.match(r"\d+", rest):
            end = match.end() + int(match[0])
            name, rest = rest[match.end() : end], rest[end:]
        arguments: list[str] = []
        rest = rest[1:] if rest.startswith("I") else ""
        while rest and not rest.startswith("E"):
            token = re.match(
                r"NS\d?_(4[bf][fp]16|\d+In(?:Tensor|(?:Weighted)?Pages))E|L[ib](\d+)E|([ftj])|S\d?_",
                rest,
            )
            assert token is not None, self.symbol
            arguments.append(TYPES[token[1] or token[3]] if token[1] or token[3] else token[2])
            rest = rest[token.end() :]
        return f"{name}<{', '.join(arguments)}>" if arguments else name


def cuobjdump() -> str | None:
    """The program: on PATH, or where Triton's package carries it."""
    if on_path := shutil.which("cuobjdump"):
        return on_path
    spec = importlib.util.find_spec("triton")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / "backends" / "nvidia" / "bin" / "cuobjdump"
        if path.is_file():
            return str(path)
    return None


def _dump(option: str, library: Path) -> Iterator[str]:
    program = cuobjdump()
    if program is None:
        raise RuntimeError("cuobjdump not found: install the CUDA toolkit or triton")
    with subprocess.Popen(
        [program, option, str(library)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode != 0:
        raise RuntimeError(f"{program} {option} {library} failed")


def kernels(library: Path) -> list[Kernel]:
    """Every kernel of the library."""
    found: list[Kernel] = []
    arch = symbol = ""
    for line in _dump("--dump-resource-usage", library):
        if match := re.match(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\w+):", line):
            symbol = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+)", line):
            found.append(Kernel(arch, symbol, int(match[1]), int(match[2])))
    return sorted(found, key=lambda kernel: (kernel.arch, kernel.name))


def instructions(library: Path) -> dict[tuple[str, str], dict[str, int]]:
    """How often each of INSTRUCTIONS stands in a kernel's machine code, by (arch, symbol)."""
    patterns = {name: re.compile(pattern) for name, pattern in INSTRUCTIONS.items()}
    counts: dict[tuple[str, str], dict[str, int]] = {}
    arch = ""
    current: dict[str, int] = {}
    for line in _dump("-sass", library):
        if match := re.match(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function : (\w+)", line):
            current = counts.setdefault((arch, match[1]), dict.fromkeys(patterns, 0))
        elif ";" in line:  # every instruction ends with one
            for name, pattern in patterns.items():
                current[name] += pattern.search(line) is not None
    return counts


HEADER = """\
# What the CUDA kernels take

Written by `python -m bench.cuda_resources` from the built library; `tests/cuda/test_cuda_build.py`
checks the same figures. Registers per thread; spilled bytes per thread (its stack); how many matrix
products (HMMA), asynchronous 16-byte copies (LDGSTS) and other 16-byte loads stand in the code.
Template arguments: dtype, padded head dimension, where the keys lie (a tensor, the pages of a
cache, or pages whose entries have their own scales: weighted), and what the kernel's source says.

| chip | kernel | registers | spilled | HMMA | LDGSTS | LDG.128 |
| --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", type=Path, default=library_path("cuda"))
    parser.add_argument("--output", type=Path, default=TABLE)
    arguments = parser.parse_args()
    counts = instructions(arguments.library)
    lines = []
    for kernel in kernels(arguments.library):
        seen = counts[kernel.arch, kernel.symbol]
        cells = (
            kernel.arch,
            f"`{kernel.name}`",
            kernel.registers,
            kernel.stack,
            seen["matrix"],
            seen["asynchronous copies"],
            seen["16-byte loads"],
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    arguments.output.write_text(HEADER + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
