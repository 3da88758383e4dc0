"""One wheel for every Python >= 3.10 and torch >= 2.10: built from the sdist, then looked into."""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from support.build_tools import ROOT, checked, cmake_build, one_at_a_time, run, tool

TORCH_INCLUDE = Path(torch.__file__).parent / "include"
TARGET_VERSION = "0x020a000000000000"  # 2.10
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist: whatever a build needs must be in it."""
    folder = tmp_path_factory.mktemp("sdist")
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, ROOT]
    with one_at_a_time("sdist"):  # it writes a list of files into the tree
        checked(build)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(source_tree: Path) -> Path:
    """The wheel without the NumPy module, built from the sdist."""
    switches = {"LOOKAHEADKV_NUMPY": "off", "LOOKAHEADKV_CUDA": "off"}
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    checked(build, cwd=source_tree, env=switches)
    (path,) = (source_tree / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the unpacked wheel."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def library(installed: Path) -> Path:
    (path,) = installed.rglob("*.so")
    assert path.relative_to(installed) == Path("lookaheadkv_kernels/lib/liblookaheadkv_cpu.so")
    return path


@pytest.mark.slow
def test_tag_serves_every_python(wheel: Path, installed: Path) -> None:
    assert re.fullmatch(r"lookaheadkv_kernels-[\d.]+-py3-none-\w+\.whl", wheel.name)
    (metadata,) = installed.glob("*.dist-info/WHEEL")
    assert re.search(r"^Tag: py3-none-\w+$", metadata.read_text(), re.MULTILINE)
    assert "Root-Is-Purelib: false" in metadata.read_text()


@pytest.mark.slow
def test_contents(installed: Path) -> None:
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {
        "lookaheadkv_kernels"
    }
    for folder, installed_as in (
        ("lookaheadkv_kernels", "lookaheadkv_kernels"),
        ("python_ref", "lookaheadkv_kernels/python_ref"),
    ):
        for path in (ROOT / folder).rglob("*.py"):
            copy = installed / installed_as / path.relative_to(ROOT / folder)
            assert copy.read_bytes() == path.read_bytes()
    package = ROOT / "lookaheadkv_kernels"
    data = [p for p in package.rglob("*") if p.suffix in (".json", ".safetensors", ".css", ".js")]
    assert len(data) > 3
    for path in (*data, package / "py.typed"):
        copy = installed / "lookaheadkv_kernels" / path.relative_to(package)
        assert copy.read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_metadata(installed: Path) -> None:
    (path,) = installed.glob("*.dist-info/METADATA")
    metadata = path.read_text()
    for line in (
        "Name: lookaheadkv-kernels",
        "License-Expression: Apache-2.0",
        "Requires-Python: >=3.10",
        "Requires-Dist: torch>=2.10",
        "Requires-Dist: numpy",
    ):
        assert f"\n{line}\n" in metadata
    assert (path.parent / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def shims_of_target_version(folder: Path) -> set[str]:
    """Every C function that torch's headers declare when asked for the target version."""
    source = folder / "shims.cpp"
    source.write_text(
        "#include <torch/csrc/stable/c/shim.h>\n"
        "#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>\n"
    )
    defines = [f"-DTORCH_TARGET_VERSION={TARGET_VERSION}"]
    text = checked([tool("c++"), "-std=c++17", "-E", *defines, f"-I{TORCH_INCLUDE}", source])
    return set(re.findall(r"\b((?:aoti_)?torch_\w+)\s*\(", text))


@pytest.mark.slow
@linux_only
def test_undefined_symbols_are_those_of_the_target_version(library: Path, tmp_path: Path) -> None:
    lines = checked([tool("nm"), "--dynamic", "--undefined-only", library]).splitlines()
    symbols = {line.split()[-1] for line in lines if line.split()[-2] == "U"}
    # What the C and C++ runtimes provide carries a version; the rest has to come from torch.
    runtime = {name for name in symbols if re.search(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_", name)}
    from_torch = symbols - runtime
    assert "aoti_torch_library_def" in from_torch
    assert from_torch <= shims_of_target_version(tmp_path)


@pytest.mark.slow
@linux_only
def test_links_no_python_and_no_place(library: Path) -> None:
    dynamic = checked([tool("readelf"), "--dynamic", "--wide", library])
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    assert "libtorch_cpu.so" in needed
    system = r"lib(torch_cpu|stdc\+\+|gcc_s|c|m|pthread)\.so(\.\d+)?|ld-linux.*"
    assert {name for name in needed if not re.fullmatch(system, name)} == set()
    assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic)


@pytest.mark.slow
@linux_only
def test_exports_only_its_own_c_functions(library: Path) -> None:
    lines = checked([tool("nm"), "--dynamic", "--defined-only", library]).splitlines()
    functions = {line.split()[-1] for line in lines if line.split()[-2] == "T"}
    assert functions == {"lookaheadkv_cpu_active_isa", "lookaheadkv_cpu_supported_isas"}


@pytest.mark.slow
@linux_only
def test_instruction_sets_stay_in_their_files(wheel: Path, source_tree: Path) -> None:
    """Code compiled for a newer CPU must be reachable through the dispatcher only.

    An inline function that such a file shares with others could be the copy the linker keeps for
    all of them, and a static initialiser would run on every CPU: both crash older machines.
    """
    objects = [
        path
        for path in source_tree.glob("build/cmake-*/**/csrc/cpu/isa/*.o")
        if not path.name.startswith(("portable", "dispatch"))
    ]
    for path in objects:
        lines = checked([tool("nm"), "--defined-only", path]).splitlines()
        shared = [line for line in lines if line.split()[-2] in "TWVu"]
        assert shared == [], path.name
        assert ".init_array" not in checked([tool("readelf"), "--sections", "--wide", path])
    processor = checked([tool("c++"), "-dumpmachine"]).partition("-")[0]
    assert len(objects) == {"x86_64": 4, "aarch64": 2}.get(processor, 0)


@pytest.mark.slow
def test_installed_wheel_works(installed: Path, tmp_path: Path) -> None:
    script = """
import importlib.util, torch
import lookaheadkv_kernels as lookahead
from lookaheadkv_kernels import python_ref
torch.manual_seed(0)
query, key, value = (torch.randn(2, *size, 64) for size in [(8, 32), (2, 532), (2, 532)])
kept = lookahead.score_and_evict(query, key, value, 64)
torch.testing.assert_close(kept.scores, python_ref.column_scores(query, key))
assert torch.equal(kept.indices, python_ref.select(kept.scores, 64))
print(lookahead.__file__)
"""
    output = checked(
        [sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(installed)}
    )
    assert Path(output.strip()) == installed / "lookaheadkv_kernels" / "__init__.py"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("LOOKAHEADKV_NUMPY", "maybe", "LOOKAHEADKV_NUMPY must be one of on, off, got 'maybe'"),
        ("LOOKAHEADKV_CUDA", "yes", "LOOKAHEADKV_CUDA must be one of auto, on, off, got 'yes'"),
        ("LOOKAHEADKV_WERROR", "1", "LOOKAHEADKV_WERROR must be one of on, off, got '1'"),
        ("LOOKAHEADKV_CUDA_ARCHS", "sm_80", "must be chips such as 80;90a;100a-real, got 'sm_80'"),
        ("LOOKAHEADKV_CUDA_ARCHS", "80,90", "must be chips such as 80;90a;100a-real, got '80,90'"),
    ],
)
def test_unknown_switch_is_an_error(variable: str, value: str, message: str) -> None:
    result = run([sys.executable, "setup.py", "--name"], cwd=ROOT, env={variable: value})
    assert result.returncode != 0
    assert message in result.stderr


NO_COMPILER = "lookaheadkv_kernels: no C++ compiler found: install one"


def without_compiler(folder: Path) -> dict[str, str]:
    """An environment whose PATH has none."""
    folder.mkdir()
    return {"PATH": str(folder), "CXX": "", "CMAKE_ARGS": ""}


def test_no_compiler_is_one_sentence(tmp_path: Path) -> None:
    environment = without_compiler(tmp_path / "bin")
    result = run([sys.executable, "setup.py", "build_ext"], cwd=ROOT, env=environment)
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1].startswith(NO_COMPILER)
    assert "Traceback" not in result.stderr
    environment["CXX"] = "no-such-c++ -m64"
    result = run([sys.executable, "setup.py", "build_ext"], cwd=ROOT, env=environment)
    assert result.returncode != 0
    assert "lookaheadkv_kernels: CXX='no-such-c++' is no program: install one" in result.stderr


@pytest.mark.slow
def test_pip_shows_that_sentence(source_tree: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    command += ["--target", str(tmp_path / "target"), str(source_tree)]
    result = run(command, env=without_compiler(tmp_path / "bin"))
    assert result.returncode != 0
    lines = (result.stdout + result.stderr).splitlines()
    assert sum(NO_COMPILER in line for line in lines) == 1
    assert not any("CMake Error" in line or "Traceback" in line for line in lines)
    assert not (tmp_path / "target").exists()


def configure(source: Path, build: Path, cuda: str, **environment: str) -> tuple[int, str]:
    """Configure only the op libraries; exit status and messages."""
    command = [tool("cmake"), "-S", source, "-B", build, "-G", "Ninja", "-DLOOKAHEADKV_NUMPY=OFF"]
    command += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DLOOKAHEADKV_CUDA={cuda}"]
    command += [f"-DLOOKAHEADKV_TORCH_DIR={TORCH_INCLUDE.parent}"]
    result = run(command, env=environment)
    return result.returncode, " ".join(result.stderr.split())


@pytest.fixture
def cuda_tree(source_tree: Path, tmp_path: Path) -> Path:
    """A tree with one CUDA source, whatever this version has."""
    tree = tmp_path / "tree"
    shutil.copytree(source_tree, tree, ignore=shutil.ignore_patterns("build", "dist"))
    shutil.rmtree(tree / "csrc" / "cuda", ignore_errors=True)
    (tree / "csrc" / "cuda").mkdir()
    (tree / "csrc" / "cuda" / "ops.cu").write_text(
        '#include <torch/csrc/stable/library.h>\nextern "C" __global__ void nothing() {}\n'
        "STABLE_TORCH_LIBRARY_IMPL(lookaheadkv, CUDA, m) { (void)m; }\n"
    )
    return tree


def test_cuda_on_without_nvcc_is_an_error(cuda_tree: Path, tmp_path: Path) -> None:
    no_nvcc = {"PATH": "/usr/bin:/bin", "CUDACXX": str(tmp_path / "missing")}
    code, messages = configure(cuda_tree, tmp_path / "on", "on", **no_nvcc)
    assert code != 0
    assert "LOOKAHEADKV_CUDA=on, but nvcc was not found: put it on PATH or set CUDACXX" in messages
    code, messages = configure(cuda_tree, tmp_path / "auto", "auto", **no_nvcc)
    assert (code, messages) == (0, "")


def test_cuda_on_without_sources_is_an_error(cuda_tree: Path, tmp_path: Path) -> None:
    shutil.rmtree(cuda_tree / "csrc" / "cuda")
    code, messages = configure(cuda_tree, tmp_path / "on", "on")
    assert code != 0
    assert "LOOKAHEADKV_CUDA=on, but this version has no CUDA sources" in messages


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_cuda_library_builds_without_a_gpu(cuda_tree: Path, tmp_path: Path) -> None:
    build = tmp_path / "build"
    cmake_build(
        cuda_tree,
        build,
        "-DLOOKAHEADKV_NUMPY=OFF",
        f"-DLOOKAHEADKV_TORCH_DIR={TORCH_INCLUDE.parent}",
        target="lookaheadkv_cuda",
    )
    assert (build / "liblookaheadkv_cuda.so").is_file()
