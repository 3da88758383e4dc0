"""Lays the compiled ops out as the kernels hub wants a build variant: docs/kernels_hub.md.

python hub/package.py --backend cpu --library liblookaheadkv_cpu.so --commit SHA --out build
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import platform
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "lookaheadkv-kernels"
# 0 is for kernels whose interface may still change.
VERSION = 0
STABLE_ABI = "torch-stable-abi210"
# The Python modules of the ops; they import only torch, the standard library and each other.
MODULES = (
    "_autograd.py",
    "_checks.py",
    "_checks_paged.py",
    "_outputs.py",
    "_outputs_paged.py",
    "ops.py",
    "paged.py",
)
# manylinux_2_28.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
NEEDED = re.compile(
    r"(libtorch\w*|libc10\w*|libstdc\+\+|libgcc_s|libc|libm|libdl|libpthread|librt|ld-linux\S*?"
    r")\.so(\.\d+)*"
)

INIT = '''"""Score a prompt's KV cache with lookahead rows, and evict what they do not need."""

from . import _ops  # isort: skip
from . import _autograd, ops, paged

_public = {name: getattr(module, name) for module in (ops, paged) for name in module.__all__}
__all__ = sorted(name for name, value in _public.items() if not isinstance(value, type))
globals().update({name: _public[name] for name in __all__})
'''

OPS = '''"""The ops of this build, in a namespace that no other build has."""

from pathlib import Path

import torch

torch.ops.load_library(Path(__file__).parent / "{id}.abi3.so")
ops = torch.ops.{id}


def add_op_namespace_prefix(op_name: str) -> str:
    """The full name of an op."""
    return f"{id}::{{op_name}}"
'''

# In place of the package's module of this name, which all others take the namespace from.
LIBRARY = '''"""The namespace of this build's ops."""

from ._ops import ops as OPS

NAMESPACE = "{id}"
'''

# For releases of the kernels package that look for a folder named like the kernel.
COMPATIBILITY = '''"""The same as the folder above."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location(
    "{id}", Path(__file__).parents[1] / "__init__.py"
)
_module = sys.modules.get("{id}")
if _module is None:
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["{id}"] = _module
    _spec.loader.exec_module(_module)
__all__ = _module.__all__
globals().update({{name: getattr(_module, name) for name in __all__}})
'''


def kernel_id(commit: str) -> str:
    """Module name and op namespace of a build: like no other commit's."""
    return f"_{NAME.replace('-', '_')}_cpu_{commit[:7]}"


def variant() -> str:
    """Folder of a build: any torch from 2.10 on, by the stable ABI."""
    return f"{STABLE_ABI}-cpu-{platform.machine()}-linux"


def abi_problems(library: Path) -> list[str]:
    """Reasons why a library would not run wherever manylinux_2_28 and torch do."""
    output = subprocess.run(
        ["readelf", "--wide", "--dynamic", "--version-info", library],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    problems = []
    for family, number in sorted(set(re.findall(r"Name: (\w+?)_([\d.]+) ", output))):
        if family in NEWEST and tuple(map(int, number.split("."))) > NEWEST[family]:
            newest = ".".join(map(str, NEWEST[family]))
            problems.append(f"needs {family} {number}, newest allowed is {newest}")
    for name in re.findall(r"\(NEEDED\).*\[(.*)\]", output):
        if not NEEDED.fullmatch(name):
            problems.append(f"needs {name}")
    return problems


def build_variant(library: Path, commit: str, out: Path) -> Path:
    """Write the CPU's build variant and return its folder.

    Args:
        library: the op library, built with ``-DLOOKAHEADKV_OP_NAMESPACE`` = :func:`kernel_id`.
        commit: hash of the commit that the library was built from.
        out: the kernel repository's ``build`` folder.

    Raises:
        ValueError: the library registers its ops elsewhere.
    """
    name = kernel_id(commit)
    if name.encode() not in library.read_bytes():
        raise ValueError(
            f"{library} does not register its ops as torch.ops.{name}: "
            f"configure it with -DLOOKAHEADKV_OP_NAMESPACE={name}"
        )
    folder = out / variant()
    shutil.rmtree(folder, ignore_errors=True)
    inner = folder / NAME.replace("-", "_")
    inner.mkdir(parents=True)
    shutil.copyfile(library, folder / f"{name}.abi3.so")
    for module in MODULES:
        shutil.copyfile(ROOT / "lookaheadkv_kernels" / module, folder / module)
    (folder / "__init__.py").write_text(INIT)
    (folder / "_ops.py").write_text(OPS.format(id=name))
    (folder / "_library.py").write_text(LIBRARY.format(id=name))
    (inner / "__init__.py").write_text(COMPATIBILITY.format(id=name))
    (folder / "metadata.json").write_text(json.dumps(metadata(folder, name), indent=2) + "\n")
    return folder


def metadata(folder: Path, name: str) -> dict[str, object]:
    """What the hub wants to know of a variant, with the hash of each of its files."""
    return {
        "name": NAME,
        "id": name,
        "version": VERSION,
        "license": "Apache-2.0",
        "python-depends": [],
        "kernel-depends": [],
        "backend": {"type": "cpu"},
        "digest": {
            "algorithm": "sha256",
            "files": {
                path.relative_to(folder).as_posix(): base64.b64encode(
                    hashlib.sha256(path.read_bytes()).digest()
                ).decode()
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            },
        },
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if problems := abi_problems(options.library):
        raise SystemExit(f"{options.library} is not manylinux_2_28: " + "; ".join(problems))
    print(build_variant(options.library, options.commit, options.out))


if __name__ == "__main__":
    main()
