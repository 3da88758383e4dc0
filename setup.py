"""Builds the compiled parts with CMake + Ninja; everything else is in pyproject.toml.

Environment: ``LOOKAHEADKV_CUDA=auto|on|off`` (default auto: where nvcc and sources are found),
``LOOKAHEADKV_CUDA_ARCHS`` (the chips it is for, see cmake/cuda.cmake; e.g. ``80;90a;100a``),
``LOOKAHEADKV_NUMPY=on|off`` (default on; off leaves one ``py3-none`` wheel for every Python),
``LOOKAHEADKV_WERROR=on|off`` (default off), ``CMAKE_ARGS`` (appended), ``MAX_JOBS``.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Distribution, Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "cmake"))
from build_backend import torch_dir  # noqa: E402

LIBRARIES = "lookaheadkv_kernels/lib"
NUMPY_MODULE = "lookaheadkv_numpy"
COMPILERS = ("c++", "g++", "clang++")  # of those that CMake tries, the ones that can build this


def switch(name: str, default: str, allowed: tuple[str, ...] = ("on", "off")) -> str:
    value = os.environ.get(name, default).lower()
    if value not in allowed:
        raise SystemExit(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


def cuda_archs() -> str | None:
    """The chips that are asked for; a misspelled one would be found by nvcc alone, and late."""
    name = "LOOKAHEADKV_CUDA_ARCHS"
    value = os.environ.get(name) or None
    chip = r"(\d+[af]?(-real|-virtual)?|native|all|all-major)"
    if value and not re.fullmatch(f"{chip}(;{chip})*", value):
        raise SystemExit(f"{name} must be chips such as 80;90a;100a-real, got {value!r}")
    return value


CUDA = switch("LOOKAHEADKV_CUDA", "auto", ("auto", "on", "off"))
NUMPY = switch("LOOKAHEADKV_NUMPY", "on")
WERROR = switch("LOOKAHEADKV_WERROR", "off")
ARCHS = cuda_archs()


class CMakeBuild(build_ext):
    """Build and install the libraries below build_lib, or into the tree for an editable install."""

    def run(self) -> None:
        torch = torch_dir()
        if torch is None:
            raise SystemExit("no torch >= 2.10 found to build against: pip install torch")
        check_compiler()
        cmake = find_tool("cmake")
        build = ROOT / "build" / f"cmake-{self.plat_name}-{sys.implementation.cache_tag}"
        prefix = ROOT if self.inplace else Path(self.build_lib).resolve()
        configure: list[str | Path] = [
            *(cmake, "-S", ROOT, "-B", build, "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DLOOKAHEADKV_TORCH_DIR={torch}",
            f"-DLOOKAHEADKV_CUDA={CUDA}",
            f"-DLOOKAHEADKV_NUMPY={NUMPY}",
            f"-DLOOKAHEADKV_WERROR={WERROR}",
        ]
        if ARCHS:
            configure.append(f"-DLOOKAHEADKV_CUDA_ARCHS={ARCHS}")
        if NUMPY == "on":
            import pybind11

            configure.append(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        compile_: list[str | Path] = [cmake, "--build", build]
        if jobs := os.environ.get("MAX_JOBS"):
            compile_ += ["--parallel", jobs]
        for command in (configure, compile_):
            subprocess.run(command, check=True)
        remove_built(prefix)  # what an earlier build with other switches left there
        subprocess.run([cmake, "--install", build, "--prefix", prefix], check=True)

    def get_outputs(self) -> list[str]:
        return [str(path) for path in built(Path(self.build_lib))]

    def get_output_mapping(self) -> dict[str, str]:
        return {}  # an editable install builds in place: nothing to map


class OneWheelForAll(bdist_wheel):
    """Without the NumPy module nothing depends on the Python version: tag the wheel so."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if NUMPY == "on" else ("py3", "none", platform)


class BinaryDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True  # the op libraries are compiled, though they are no Python extensions


def find_tool(name: str) -> str:
    """``name`` beside this interpreter (where pip installs it) or on PATH."""
    path = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if path is None:
        raise SystemExit(f"{name} not found: pip install {name}")
    return path


def check_compiler() -> None:
    """CMake looks for one, too, but says that it found none in a page about CMake."""
    chosen = shlex.split(os.environ.get("CXX", ""))[:1]
    if re.search("CMAKE_CXX_COMPILER=|CMAKE_TOOLCHAIN_FILE", os.environ.get("CMAKE_ARGS", "")):
        return
    if not any(shutil.which(name) for name in chosen or COMPILERS):
        wanted = f"CXX={chosen[0]!r} is no program" if chosen else "no C++ compiler found"
        remedy = "install one (apt-get install g++), or a wheel for this platform, which needs none"
        raise SystemExit(f"lookaheadkv_kernels: {wanted}: {remedy}")


def built(prefix: Path) -> list[Path]:
    return [*prefix.glob(f"{LIBRARIES}/*.so"), *prefix.glob(f"{NUMPY_MODULE}.*.so")]


def remove_built(prefix: Path) -> None:
    for path in built(prefix):
        path.unlink()


setup(
    distclass=BinaryDistribution,
    packages=[*find_packages(include=["lookaheadkv_kernels*"]), "lookaheadkv_kernels.python_ref"],
    package_dir={"lookaheadkv_kernels.python_ref": "python_ref"},
    package_data={
        "lookaheadkv_kernels": [
            "py.typed",
            "lookahead/models/*.json",
            "visual/assets/*",
            "weights/*/config.json",
            "weights/*/lookahead.safetensors",
        ]
    },
    include_package_data=False,
    # CMake builds everything; the entry tells setuptools of the top-level module's name.
    ext_modules=[Extension(NUMPY_MODULE, sources=[])] if NUMPY == "on" else [],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": OneWheelForAll},
)
