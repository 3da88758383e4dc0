"""The layout of the kernels hub: namespaces of their own, metadata, and what a library may need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from support.build_tools import ROOT, checked, cmake_build, tool

sys.path.insert(0, str(ROOT / "hub"))
import package

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the hub's Linux variants")
TORCH = Path(torch.__file__).parent
COMMIT = "1234567890abcdef"
NAME = "_lookaheadkv_kernels_cpu_1234567"


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of the schemas, laid out: all that a namespace is about, compiled in seconds."""
    out = tmp_path_factory.mktemp("hub")
    library = out / "schemas.so"
    checked(
        [
            *(tool("c++"), "-std=c++17", "-O0", "-shared", "-fPIC"),
            f"-DLOOKAHEADKV_OP_NAMESPACE={NAME}",
            "-DTORCH_TARGET_VERSION=0x020a000000000000",
            *(f"-I{ROOT / 'csrc'}", f"-I{TORCH / 'include'}", ROOT / "csrc" / "schema.cpp"),
            *(f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-o", library),
        ]
    )
    return package.build_variant(library, COMMIT, out / "build")


def test_layout(variant: Path) -> None:
    assert package.kernel_id(COMMIT) == NAME
    assert re.fullmatch(r"torch-stable-abi210-cpu-\w+-linux", variant.name)
    assert {path.name for path in variant.iterdir()} == {
        *package.MODULES,
        *("__init__.py", "_library.py", "_ops.py", "metadata.json"),
        *(f"{NAME}.abi3.so", "lookaheadkv_kernels"),
    }


def test_metadata(variant: Path) -> None:
    """The keys and the digest of the hub's kernel requirements."""
    metadata = json.loads((variant / "metadata.json").read_text())
    digest = metadata.pop("digest")
    assert metadata == {
        "name": "lookaheadkv-kernels",
        "id": NAME,
        "version": 0,
        "license": "Apache-2.0",
        "python-depends": [],
        "kernel-depends": [],
        "backend": {"type": "cpu"},
    }
    assert digest["algorithm"] == "sha256"
    files = {p.relative_to(variant).as_posix() for p in variant.rglob("*") if p.is_file()}
    assert set(digest["files"]) == files - {"metadata.json"}
    for name, value in digest["files"].items():
        assert base64.b64decode(value) == hashlib.sha256((variant / name).read_bytes()).digest()


def test_python_imports_nothing_else(variant: Path) -> None:
    """Relative imports, torch and the standard library; no op of another namespace."""
    for path in variant.rglob("*.py"):
        text = path.read_text()
        for module in re.findall(r"^(?:from|import) (\S+)", text, re.MULTILINE):
            top = module.partition(".")[0]
            assert top in ("", "torch") or top in sys.stdlib_module_names, (path, module)
        assert not re.search(r"torch\.ops\.(?!load_library\b)(?!" + NAME + r"\b)", text), path
        assert not re.search(r'"lookaheadkv(::|")', text), path


LOAD = """
import importlib.util, sys, torch
import lookaheadkv_kernels as installed
folder, ident = sys.argv[1:]
spec = importlib.util.spec_from_file_location(ident, folder + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[ident] = module
spec.loader.exec_module(module)
# Shapes come from the fake kernels, which are registered for this namespace alone.
assert module.select(torch.empty(2, 3, 40, device="meta"), 8).shape == (2, 3, 8)
ours = torch.ops.lookaheadkv.score_and_evict.default._schema
theirs = getattr(torch.ops, ident).score_and_evict.default._schema
assert str(theirs) == str(ours).replace("lookaheadkv::", ident + "::"), theirs
for name in module.__all__:
    assert callable(getattr(module, name))
assert module.select is not installed.select
spec = importlib.util.spec_from_file_location("older", folder + "/lookaheadkv_kernels/__init__.py")
older = importlib.util.module_from_spec(spec)
spec.loader.exec_module(older)
assert older.__all__ == module.__all__ and older.select is module.select
"""


def test_a_build_beside_the_installed_package(variant: Path) -> None:
    checked([sys.executable, "-c", LOAD, variant, NAME])


def test_the_kernels_package_loads_it(variant: Path) -> None:
    """Its own resolver, metadata checks and importer, where it is installed."""
    pytest.importorskip("kernels")
    code = f"""
import sys, torch
from pathlib import Path
from kernels import get_local_kernel
module = get_local_kernel(Path({str(variant.parents[1])!r}), backend="cpu")
assert module.__name__ == {NAME!r}
assert module.select(torch.empty(2, 3, 40, device="meta"), 8).shape == (2, 3, 8)
"""
    checked([sys.executable, "-c", code])


def test_a_library_of_another_namespace_is_refused(tmp_path: Path) -> None:
    library = tmp_path / "some.so"
    library.write_bytes(b"torch.ops.lookaheadkv")
    with pytest.raises(ValueError, match="-DLOOKAHEADKV_OP_NAMESPACE=_lookaheadkv_kernels_cpu_1"):
        package.build_variant(library, COMMIT, tmp_path / "build")


def test_every_registration_obeys_the_namespace() -> None:
    for path in (ROOT / "csrc").rglob("*.cpp"):
        assert "STABLE_TORCH_LIBRARY" not in path.read_text(), path


def linked(folder: Path, source: str, *options: str) -> Path:
    """A library made of one line."""
    (folder / "a.cpp").write_text(source)
    library = folder / "liba.so"
    checked([tool("c++"), "-shared", "-fPIC", folder / "a.cpp", "-o", library, *options])
    return library


def test_what_a_library_may_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = linked(tmp_path, '#include <cstdio>\nvoid f() { std::puts(""); }\n')
    assert package.abi_problems(library) == []
    monkeypatch.setitem(package.NEWEST, "GLIBC", (2, 1))
    (problem,) = package.abi_problems(library)
    assert re.fullmatch(r"needs GLIBC [\d.]+, newest allowed is 2\.1", problem)


def test_a_library_that_needs_another_is_found_out(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    linked(other, "void g() {}\n", "-Wl,-soname,libother.so.3")
    library = linked(tmp_path, "void g(); void f() { g(); }\n", str(other / "liba.so"))
    assert package.abi_problems(library) == ["needs libother.so.3"]


@pytest.mark.slow
def test_kernels_of_a_build(tmp_path: Path) -> None:
    """The whole CPU library in a namespace of its own gives what the package gives."""
    cmake_build(
        ROOT,
        tmp_path / "cmake",
        f"-DLOOKAHEADKV_OP_NAMESPACE={NAME}",
        f"-DLOOKAHEADKV_TORCH_DIR={TORCH}",
        "-DLOOKAHEADKV_NUMPY=OFF",
        "-DLOOKAHEADKV_CUDA=off",
        target="lookaheadkv_cpu",
    )
    library = tmp_path / "cmake" / "liblookaheadkv_cpu.so"
    folder = package.build_variant(library, COMMIT, tmp_path / "build")
    code = f"""
import importlib.util, sys, torch, lookaheadkv_kernels as installed
spec = importlib.util.spec_from_file_location({NAME!r}, {str(folder / "__init__.py")!r})
hub = importlib.util.module_from_spec(spec)
sys.modules[{NAME!r}] = hub
spec.loader.exec_module(hub)
query, key, value = torch.randn(1, 4, 8, 32), *torch.randn(2, 1, 2, 300, 32)
for ours, theirs in zip(
    installed.score_and_evict(query, key, value, 16), hub.score_and_evict(query, key, value, 16)
):
    assert torch.equal(ours, theirs)
"""
    checked([sys.executable, "-c", code])
