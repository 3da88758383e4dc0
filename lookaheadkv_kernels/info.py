"""Facts about this installation and this machine, as ``lookaheadkv info`` prints them."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import torch

from ._library import library_path
from ._version import __version__
from .backend import ENVIRONMENT_VARIABLE, available_backends

# (implementer, part) of cores that servers have.
ARM_CORES = {
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
}


def supported_isas() -> tuple[str, ...]:
    """Instruction sets that the CPU kernels can use on this machine, best first."""
    names = _call_library("lookaheadkv_cpu_supported_isas")
    assert names is not None
    return tuple(names.split(","))


def active_isa() -> str:
    """Instruction set that the CPU kernels use now.

    Raises:
        RuntimeError: ``LOOKAHEADKV_CPU_ISA`` names one that is unknown or cannot run here.
    """
    name = _call_library("lookaheadkv_cpu_active_isa")
    if name is None:
        raise RuntimeError(
            f"LOOKAHEADKV_CPU_ISA must be one of {', '.join(supported_isas())} on this machine, "
            f"got {os.environ.get('LOOKAHEADKV_CPU_ISA')}"
        )
    return name


def multiplies_bf16() -> bool:
    """Whether torch multiplies bfloat16 matrices with vector instructions of this CPU.

    Where it does not (x86 without AVX-512, say), its plain loops reach half a GFLOP/s. The answer
    is oneDNN's, so ``ONEDNN_MAX_CPU_ISA`` counts.
    """
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except AttributeError:  # this torch has no oneDNN
        return False


def collect() -> dict[str, str]:
    """Label -> value, in the order they are printed."""
    try:
        active = active_isa()
    except RuntimeError as error:
        active = f"none ({error})"
    facts = {
        "version": __version__,
        "backends": ", ".join(available_backends()),
        "backend asked for": os.environ.get(ENVIRONMENT_VARIABLE) or "none (chosen by device)",
        "CPU ISA in use": active,
        "CPU ISAs supported": ", ".join(supported_isas()),
        "CPU": cpu_model(),
        "CPU threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "CUDA of torch": torch.version.cuda or "none (CPU-only torch)",
        "op library": str(library_path("cpu").parent),
    }
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        facts[f"cuda:{index}"] = (
            f"{device.name}, compute capability {device.major}.{device.minor}, "
            f"{device.multi_processor_count} SMs, {device.total_memory / 2**30:.0f} GiB"
        )
    return facts


def _call_library(name: str) -> str | None:
    function = getattr(ctypes.CDLL(str(library_path("cpu"))), name)
    function.restype = ctypes.c_char_p
    result: bytes | None = function()
    return result.decode() if result is not None else None


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    model = model_in(cpuinfo.read_text()) if cpuinfo.is_file() else ""
    return model or platform.processor() or platform.machine()


def model_in(cpuinfo: str) -> str:
    """The CPU that a text like ``/proc/cpuinfo`` is about; empty where it does not say.

    Linux on ARM gives numbers instead of a name, and those of every kind of core there is.
    """
    pairs = [line.partition(":") for line in cpuinfo.splitlines()]
    fields = [(label.strip(), value.strip()) for label, _, value in pairs]
    names = [value for label, value in fields if label == "model name"]
    if names:
        return names[0]
    implementers = [value for label, value in fields if label == "CPU implementer"]
    parts = [value for label, value in fields if label == "CPU part"]
    cores = dict.fromkeys(zip(implementers, parts, strict=False))
    return " + ".join(
        ARM_CORES.get(core, "ARM core {} of {}".format(*core[::-1])) for core in cores
    )
