"""Compiles recorded launches for a chip that need not be here, and reads what they take of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lookaheadkv_kernels.triton.launch import Launch
from lookaheadkv_kernels.triton.splits import Target

TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.uint8: "u8",
}
OPTIONS = ("num_warps", "num_stages")


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes."""

    kernel: str
    num_warps: int
    num_stages: int
    shared_memory: int  # bytes
    registers: int  # per thread
    spills: int  # bytes stored and loaded, per thread
    matrix_instruction: str  # "wgmma", "tcgen05", "mma", "mfma" or "none"
    bulk_copies: bool  # whether tiles come through the copy engine (TMA)


def _type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    block = ",".join(map(str, value.block_shape))
    return f"tensordesc<{TYPES[value.base.dtype]}[{block}]>"


def _specialise(
    launch: Launch,
) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[Any]]]]:
    """Signature, constants and attributes of the compiled kernel, as a real launch gives them."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for position, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        whole = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (whole and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = parameter.annotation_type or _type_of(value)
        if isinstance(value, Tensor) or (whole and value % 16 == 0):
            attributes[(position,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _options(launch: Launch) -> dict[str, int]:
    return {name: launch.arguments[name] for name in OPTIONS if name in launch.arguments}


def compile_key(launch: Launch) -> str:
    """Launches with equal keys run the same machine code."""
    return repr((launch.kernel.__name__, *_specialise(launch), _options(launch)))


def compile_launch(launch: Launch, target: Target) -> Any:
    """Triton's compiled kernel for this launch on ``target``."""
    arch: Any = target.arch if target.backend == "cuda" else f"gfx{target.arch}"
    return triton.compile(
        ASTSource(launch.kernel, *_specialise(launch)),
        target=GPUTarget(target.backend, arch, 32 if target.backend == "cuda" else 64),
        options=_options(launch),
    )


def _matrix_instruction(assembly: str) -> str:
    for name, pattern in (
        ("tcgen05", r"tcgen05\.mma"),
        ("wgmma", r"wgmma\.mma_async"),
        ("mma", r"mma\.sync"),
        ("mfma", r"v_mfma_"),
    ):
        if re.search(pattern, assembly):
            return name
    return "none"


def _ptxas_report(ptx: str, target: Target) -> tuple[int, int]:
    """(registers, spilled bytes) that ptxas reports."""
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        arch = sm_arch_from_capability(target.arch)
        report = subprocess.run(
            [
                get_ptxas(target.arch).path,
                "-v",
                f"--gpu-name={arch}",
                str(source),
                "-o",
                "/dev/null",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    registers = re.search(r"Used (\d+) registers", report)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert registers is not None and spills is not None, report
    return int(registers[1]), int(spills[1]) + int(spills[2])


def _amdgcn_report(assembly: str) -> tuple[int, int]:
    registers = re.search(r"\.vgpr_count:\s+(\d+)", assembly)
    spills = re.search(r"\.vgpr_spill_count:\s+(\d+)", assembly)
    assert registers is not None and spills is not None
    return int(registers[1]), 4 * int(spills[1])


def resources(launch: Launch, target: Target) -> Resources:
    """Compile the launch and read the compiler's reports."""
    compiled = compile_launch(launch, target)
    if target.backend == "cuda":
        assembly = compiled.asm["ptx"]
        registers, spills = _ptxas_report(assembly, target)
    else:
        assembly = compiled.asm["amdgcn"]
        registers, spills = _amdgcn_report(assembly)
    return Resources(
        launch.kernel.__name__,
        compiled.metadata.num_warps,
        compiled.metadata.num_stages,
        compiled.metadata.shared,
        registers,
        spills,
        _matrix_instruction(assembly),
        "cp.async.bulk.tensor" in assembly,
    )
