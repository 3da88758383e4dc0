"""The installed package: import, version, submodules, backends, the command."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import lookaheadkv_numpy
import pytest
import torch
from support.build_tools import ROOT, checked, run, tool

import lookaheadkv_kernels
from lookaheadkv_kernels import backend, info
from lookaheadkv_kernels._library import library_path


def test_version_is_the_same_everywhere() -> None:
    version = lookaheadkv_kernels.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert importlib.metadata.version("lookaheadkv-kernels") == version
    assert lookaheadkv_numpy.__version__ == version
    assert checked([tool("lookaheadkv"), "--version"]).strip() == version


def test_every_public_name_exists() -> None:
    for name in lookaheadkv_kernels.__all__:
        assert hasattr(lookaheadkv_kernels, name), name


def test_reference_is_a_submodule_and_no_top_level_module(tmp_path: Path) -> None:
    script = (
        "import importlib.util, lookaheadkv_kernels.python_ref as r\n"
        "print(r.score_and_evict.__module__, importlib.util.find_spec('python_ref'))"
    )
    output = checked([sys.executable, "-c", script], cwd=tmp_path)
    assert output.split() == ["lookaheadkv_kernels.python_ref.evict", "None"]


def test_missing_library_is_named_with_the_remedy(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "lookaheadkv_kernels",
        tmp_path / "lookaheadkv_kernels",
        ignore=shutil.ignore_patterns("lib"),
    )
    result = run([sys.executable, "-c", "import lookaheadkv_kernels"], cwd=tmp_path)
    assert result.returncode != 0
    assert "ImportError: lookaheadkv_kernels: the op library liblookaheadkv_cpu.so is not in" in (
        result.stderr
    )
    assert "pip install" in result.stderr


def test_broken_library_is_named_with_the_loader_s_reason(tmp_path: Path) -> None:
    package = tmp_path / "lookaheadkv_kernels"
    shutil.copytree(ROOT / "lookaheadkv_kernels", package, ignore=shutil.ignore_patterns("lib"))
    (package / "lib").mkdir()
    (package / "lib" / "liblookaheadkv_cpu.so").write_bytes(b"no library")
    result = run([sys.executable, "-c", "import lookaheadkv_kernels"], cwd=tmp_path)
    assert result.returncode != 0
    assert re.search(
        rf"ImportError: .*cannot load .* with torch {re.escape(torch.__version__)} .*: .*\S",
        result.stderr,
    )


def _write_unresolved(path: Path) -> None:
    source = path.with_suffix(".c")
    source.write_text("int nowhere(void); int used(void) { return nowhere(); }\n")
    checked([tool("cc"), "-shared", "-fPIC", "-o", path, source])


BROKEN_LIBRARIES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "no library": lambda path: path.write_bytes(b"no library"),
    "cut short": lambda path: path.write_bytes(library_path("cpu").read_bytes()[:40]),
    "lacks a symbol": _write_unresolved,
}


@pytest.mark.parametrize("kind", BROKEN_LIBRARIES)
def test_broken_cuda_library_leaves_cpu_and_triton(tmp_path: Path, kind: str) -> None:
    """On a machine with CUDA, which is pretended."""
    package = tmp_path / "lookaheadkv_kernels"
    shutil.copytree(ROOT / "lookaheadkv_kernels", package, ignore=shutil.ignore_patterns("lib"))
    (package / "lib").mkdir()
    (package / "lib" / library_path("cpu").name).symlink_to(library_path("cpu"))
    BROKEN_LIBRARIES[kind](package / "lib" / library_path("cuda").name)
    script = """
import torch
torch.cuda.is_available = lambda: True
import lookaheadkv_kernels as lkv
from lookaheadkv_kernels import _library, backend, triton
triton.available = lambda: True
print(lkv.__file__, *_library.load(), backend.backend_for("cpu"), backend.backend_for("cuda"))
print(lkv.select(torch.arange(9.0).view(1, 1, 9), 2, pool_kernel=1).tolist())
try:
    lkv.set_backend("cuda")
except RuntimeError as error:
    print(error)
"""
    automatic = {backend.ENVIRONMENT_VARIABLE: ""}
    result = run([sys.executable, "-c", script], cwd=tmp_path, env=automatic)
    assert result.returncode == 0, result.stderr
    where, indices, refusal = result.stdout.splitlines()
    assert where.split() == [str(package / "__init__.py"), "cpu", "cpu", "triton"]
    assert indices == "[[[7, 8]]]"
    assert refusal == "set_backend: backend 'cuda' is not available here; available: cpu, triton"
    assert re.search(
        rf"RuntimeWarning: .*cannot load .*{library_path('cuda').name} with torch .*: .*\S.*Triton",
        result.stderr,
    )


@pytest.fixture
def automatic_backend(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv(backend.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(backend, "_chosen", None)
    return monkeypatch


@pytest.mark.usefixtures("automatic_backend")
def test_backend_follows_the_device() -> None:
    assert "cpu" in backend.available_backends()
    assert backend.backend_for("cpu") == "cpu"
    assert backend.backend_for(torch.device("cpu")) == "cpu"
    with pytest.raises(RuntimeError, match="no backend for meta tensors; available: cpu"):
        backend.backend_for("meta")


@pytest.mark.usefixtures("automatic_backend")
def test_backend_can_be_set_and_reset() -> None:
    backend.set_backend("cpu")
    assert backend.backend_for("cpu") == "cpu"
    with pytest.raises(RuntimeError, match="backend 'cpu' does not serve meta tensors"):
        backend.backend_for("meta")
    backend.set_backend(None)
    with pytest.raises(RuntimeError, match="no backend for meta tensors"):
        backend.backend_for("meta")


def test_prefill_is_routed_where_both_backends_are_and_nobody_asked(
    automatic_backend: pytest.MonkeyPatch,
) -> None:
    class Route:
        def _destroy(self) -> None:
            routes.remove(self)

    def route_prefill(device: str, chosen: object) -> Route:
        assert (device, chosen) == ("cuda", backend.triton.leads_prefill)
        routes.append(Route())
        return routes[-1]

    routes: list[Route] = []
    automatic_backend.setattr(backend.triton, "route_prefill", route_prefill)
    automatic_backend.setattr(backend.triton, "installed", lambda: True)
    automatic_backend.setattr(backend.triton, "served_device", lambda: "cuda")
    automatic_backend.setattr(backend._library, "load", lambda: ("cpu", "cuda"))
    backend.register_kernels()
    backend.register_kernels()
    assert len(routes) == 1
    backend.set_backend("cuda")
    assert routes == []
    backend.set_backend(None)
    assert len(routes) == 1
    automatic_backend.setattr(backend.triton, "installed", lambda: False)
    backend.register_kernels()
    assert routes == []


@pytest.mark.parametrize(
    ("capability", "dtype", "leads"),
    [
        ((8, 0), torch.bfloat16, False),
        ((9, 0), torch.bfloat16, True),
        ((9, 0), torch.float32, False),
        ((10, 0), torch.float16, True),
        ((12, 0), torch.float16, False),
    ],
)
def test_triton_leads_prefill_where_it_reaches_more(
    capability: tuple[int, int],
    dtype: torch.dtype,
    leads: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lookaheadkv_kernels.triton import target

    target._reaches_new_matrix_units.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    assert backend.triton.leads_prefill(torch.empty(1, dtype=dtype)) == leads
    target._reaches_new_matrix_units.cache_clear()


@pytest.mark.usefixtures("automatic_backend")
def test_backend_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="one of cuda, triton, cpu, got 'tpu'"):
        backend.set_backend("tpu")
    with pytest.raises(RuntimeError, match="'triton' is not available here; available: cpu"):
        backend.set_backend("triton")
    assert backend.backend_for("cpu") == "cpu"  # a refused choice changes nothing


def test_backend_from_the_environment(automatic_backend: pytest.MonkeyPatch) -> None:
    automatic_backend.setenv(backend.ENVIRONMENT_VARIABLE, "cpu")
    assert backend.backend_for("cpu") == "cpu"
    automatic_backend.setenv(backend.ENVIRONMENT_VARIABLE, "triton")
    with pytest.raises(RuntimeError, match="LOOKAHEADKV_BACKEND: backend 'triton' is not avail"):
        backend.backend_for("cpu")
    backend.set_backend("cpu")  # the function has the last word
    assert backend.backend_for("cpu") == "cpu"


def test_info_command_prints_the_facts() -> None:
    lines = checked([tool("lookaheadkv"), "info"]).splitlines()
    facts = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in lines)
    assert facts["version"] == lookaheadkv_kernels.__version__
    assert facts["backends"].split(", ") == list(backend.available_backends())
    assert facts["CPU ISAs supported"].split(", ") == list(info.supported_isas())
    assert facts["CPU ISA in use"] == info.active_isa()
    assert facts["torch"] == torch.__version__
    assert int(facts["CPU threads"]) >= 1
    assert sum(label.startswith("cuda:") for label in facts) == torch.cuda.device_count()


@pytest.mark.parametrize(
    ("cpuinfo", "model"),
    [
        (
            "processor\t: 0\nmodel name\t: AMD EPYC\nprocessor\t: 1\nmodel name\t: AMD EPYC\n",
            "AMD EPYC",
        ),
        ("CPU implementer\t: 0x41\nCPU variant\t: 0x1\nCPU part\t: 0xd40\n" * 4, "Neoverse-V1"),
        (
            "CPU implementer\t: 0x41\nCPU part\t: 0xd03\n" * 2
            + "CPU implementer\t: 0x51\nCPU part\t: 0x001\n" * 2,
            "ARM core 0xd03 of 0x41 + ARM core 0x001 of 0x51",
        ),
        ("processor\t: 0\nisa\t: rv64imafdc\n", ""),
        ("", ""),
    ],
)
def test_model_of_the_cpu(cpuinfo: str, model: str) -> None:
    assert info.model_in(cpuinfo) == model


def test_isa_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert info.supported_isas()[-1] == "portable"
    assert list(info.supported_isas()) == lookaheadkv_numpy.supported_isas()
    for isa in info.supported_isas():
        monkeypatch.setenv("LOOKAHEADKV_CPU_ISA", isa)
        assert info.active_isa() == lookaheadkv_numpy.active_isa() == isa
    monkeypatch.setenv("LOOKAHEADKV_CPU_ISA", "mmx")
    with pytest.raises(RuntimeError, match=r"LOOKAHEADKV_CPU_ISA must be one of .* got mmx"):
        info.active_isa()


def test_command_without_subcommand_is_a_usage_error() -> None:
    result = run([tool("lookaheadkv")])
    assert result.returncode == 2
    assert "usage: lookaheadkv" in result.stderr
