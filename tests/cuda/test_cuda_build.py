"""The CUDA library that the installation built: what its kernels take, and that it links right.

Reuses that library; building takes minutes. Reading machine code needs no GPU.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import sys

import pytest
import torch
from support.build_tools import checked, run, tool

from bench import cuda_resources
from bench.cuda_resources import Kernel
from lookaheadkv_kernels._library import library_path

LIBRARY = library_path("cuda")
if not LIBRARY.is_file() and shutil.which("nvcc") is None:
    pytest.skip("needs nvcc", allow_module_level=True)

needs_disassembler = pytest.mark.skipif(
    cuda_resources.cuobjdump() is None, reason="needs cuobjdump (the CUDA toolkit, or triton)"
)
CHIPS = ("sm_80", "sm_90")  # what cmake/cuda.cmake names; 90a is a variant of 90


def test_is_built_where_nvcc_is() -> None:
    assert LIBRARY.is_file(), (
        "nvcc is on PATH: install again, pip install -e . --no-build-isolation"
    )


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    return cuda_resources.kernels(LIBRARY)


@pytest.fixture(scope="module")
def counts() -> dict[tuple[str, str], dict[str, int]]:
    return cuda_resources.instructions(LIBRARY)


@needs_disassembler
def test_every_kernel_for_every_chip(kernels: list[Kernel]) -> None:
    names = {chip: {k.name for k in kernels if k.arch.startswith(chip)} for chip in CHIPS}
    assert names["sm_80"] == names["sm_90"]
    for dtype in ("bf16", "fp16"):
        for dim in (64, 96, 128, 256):
            for keys in ("tensor", "pages", "weighted pages"):
                assert f"column_scores_mma_kernel<{dtype}, {dim}, {keys}>" in names["sm_80"]
            for what in ("0, tensor", "1, tensor", "0, pages", "0, weighted pages"):
                assert f"attention_mma_kernel<{dtype}, {dim}, {what}>" in names["sm_80"]
        for name in ("key_gradient_kernel", "sum_splits_kernel", "combine_kernel"):
            assert f"{name}<{dtype}>" in names["sm_80"]
    others = {
        "select_piece_kernel<3>",
        "merge_pieces_kernel",
        "write_kept_kernel",
        "select_gather_kernel<16 bits, 3>",
        "column_scores_fma_kernel<tensor>",
        "column_scores_fma_kernel<pages>",
        "compact_kv_cache_kernel",
    }
    assert others <= names["sm_80"]


@needs_disassembler
def test_no_spills(kernels: list[Kernel]) -> None:
    assert [k for k in kernels if k.stack > 0] == []


@needs_disassembler
@pytest.mark.slow
def test_instructions(kernels: list[Kernel], counts: dict[tuple[str, str], dict[str, int]]) -> None:
    for kernel in kernels:
        seen = counts[kernel.arch, kernel.symbol]
        assert seen["local memory"] == 0, kernel
        assert seen["float atomics"] == 0, kernel
        if "_mma_" in kernel.name:
            assert seen["matrix"] > 0, kernel
            assert seen["matrix loads"] > 0, kernel
            assert seen["asynchronous copies"] > 0, kernel
        if kernel.name.startswith(("gather_kernel", "select_gather_kernel")):
            assert seen["16-byte loads"] >= 2, kernel  # K and V
            assert seen["16-byte stores"] >= 2, kernel
        if kernel.name == "compact_kv_cache_kernel":
            assert seen["16-byte loads"] >= 4, kernel  # under way at once
            assert seen["16-byte stores"] >= 4, kernel
        if re.match(r"(row|key)_gradient_kernel<(bf16|fp16)", kernel.name):
            assert seen["16-byte loads"] > 0, kernel


@needs_disassembler
def test_table_names_the_kernels_there_are(kernels: list[Kernel]) -> None:
    table = cuda_resources.TABLE.read_text()
    recorded = set(re.findall(r"^\| (sm_\w+) \| `(.+?)` \|", table, re.MULTILINE))
    assert recorded == {(k.arch, k.name) for k in kernels}


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_needs_of_torch_only_the_stable_interface() -> None:
    lines = checked([tool("nm"), "--dynamic", "--undefined-only", LIBRARY]).splitlines()
    symbols = {line.split()[-1] for line in lines if line.split()[-2] == "U"}
    runtime = {name for name in symbols if re.search(r"@(GLIBC|GLIBCXX|CXXABI|GCC)", name)}
    assert all(re.match(r"(aoti_)?torch_", name) for name in symbols - runtime)
    dynamic = checked([tool("readelf"), "--dynamic", "--wide", LIBRARY])
    assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic)
    assert "libtorch.so" in dynamic  # which brings libtorch_cuda.so along
    assert "libcudart" not in dynamic  # linked into it: any runtime may be beside it


@pytest.mark.skipif(torch.cuda.is_available(), reason="is loaded there")
def test_is_left_alone_without_cuda() -> None:
    import lookaheadkv_kernels as lkv

    assert "cuda" not in lkv.available_backends()


def test_loads_only_where_torch_knows_cuda() -> None:
    """Why it is a library of its own: a CPU-only torch lacks one symbol it needs."""
    if torch.version.cuda is not None:
        pytest.skip("this torch knows CUDA")
    script = (
        "import ctypes, torch, lookaheadkv_kernels\n"
        f"ctypes.CDLL({str(LIBRARY)!r}, mode={ctypes.RTLD_GLOBAL} | 2)\n"
    )
    result = run([sys.executable, "-c", script])
    assert result.returncode != 0
    assert "aoti_torch_get_current_cuda_stream" in result.stderr


def test_without_the_library_triton_serves_gpus() -> None:
    """A wheel built without nvcc: the automatic choice, with a GPU pretended."""
    script = """
from lookaheadkv_kernels import _library, backend, triton
triton.available = lambda: True
_library.load = lambda: ("cpu",)
print(backend.backend_for("cuda"))
_library.load = lambda: ("cpu", "cuda")
print(backend.backend_for("cuda"))
"""
    assert checked([sys.executable, "-c", script]).split() == ["triton", "cuda"]
