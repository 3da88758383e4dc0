"""What this process compiles kernels for, and whether it can run them."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

from .splits import INTERPRETER, Target


@functools.cache
def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter: on CPU tensors, for tests without a GPU.

    Read from the environment variable, which costs no import of Triton.
    """
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def installed() -> bool:
    """Whether Triton is installed; this does not import it."""
    return importlib.util.find_spec("triton") is not None


def available() -> bool:
    """Whether kernels can run here: Triton is installed, and there is a GPU or the interpreter."""
    return installed() and (interpreting() or torch.cuda.is_available())


def served_device() -> str:
    """Type of the devices whose tensors the kernels take: "cuda" (AMD too), or "cpu"."""
    return "cpu" if interpreting() else "cuda"


def leads_prefill(query: Tensor) -> bool:
    """Whether prefill_attention is expected to be faster here than in the CUDA library.

    The library multiplies by mma.sync on every chip. Triton reaches Hopper's wgmma and data-centre
    Blackwell's tcgen05, which have about twice its rate; fp32 uses neither.
    """
    if query.dtype not in (torch.float16, torch.bfloat16):
        return False
    return _reaches_new_matrix_units(query.device.index or 0)


@functools.cache
def _reaches_new_matrix_units(index: int) -> bool:
    return torch.cuda.get_device_capability(index)[0] in (9, 10)


@functools.cache
def _device_target(index: int) -> Target:
    from triton.runtime import driver

    properties = torch.cuda.get_device_properties(index)
    shared = int(driver.active.utils.get_device_properties(index)["max_shared_mem"])
    if torch.version.hip is not None:
        arch = int("".join(c for c in properties.gcnArchName.split(":")[0] if c.isdigit()) or 0)
        return Target("hip", arch, properties.multi_processor_count, shared)
    arch = properties.major * 10 + properties.minor
    return Target("cuda", arch, properties.multi_processor_count, shared)


def target_of(tensor: Tensor) -> Target:
    """The target that serves this tensor's device."""
    if interpreting():
        return INTERPRETER
    return _device_target(tensor.device.index or 0)
