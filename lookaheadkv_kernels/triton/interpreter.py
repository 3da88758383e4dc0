"""Runs kernels in Triton's interpreter: on CPU tensors, with NumPy, for tests without a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor


@contextlib.contextmanager
def _adapted() -> Iterator[None]:
    """Triton 3.6's interpreter with two things changed while a kernel runs.

    ``range`` takes its scalars, which are one-element arrays: NumPy 2.4 no longer turns those into
    integers by itself. And it prepares ``triton.language`` once per launch and module, not anew at
    every call of a device function, which took a third of the time.
    """
    from triton.runtime import interpreter

    patch_tensor, patch_lang = interpreter._patch_lang_tensor, interpreter._patch_lang
    prepared: set[int] = set()

    def patch_tensor_with_index(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def patch_lang_once(function: Any) -> Any:
        module = id(function.__globals__)
        if module in prepared:
            return interpreter._LangPatchScope()
        prepared.add(module)
        return patch_lang(function)

    interpreter._patch_lang_tensor = patch_tensor_with_index
    interpreter._patch_lang = patch_lang_once
    try:
        yield
    finally:
        interpreter._patch_lang_tensor, interpreter._patch_lang = patch_tensor, patch_lang


def run(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
    """Run in the interpreter, which multiplies bfloat16 as integers: float32 stands in for it.

    Kernels name their results ``out...``; those are rounded back.
    """
    wide = {name: _widened(value) for name, value in arguments.items()}
    wide.pop("num_warps", None)
    wide.pop("num_stages", None)
    # A GPU does not warn of the logarithm of an empty sum, or of infinity minus infinity.
    with _adapted(), np.errstate(all="ignore"):
        kernel[grid](**wide)
    for name, value in arguments.items():
        if name.startswith("out") and wide[name] is not value:
            value.copy_(wide[name])


def _widened(value: Any) -> Any:
    """A bfloat16 tensor or descriptor as float32 with the same strides; anything else as it is."""
    if isinstance(value, Tensor) and value.dtype == torch.bfloat16:
        if value.numel() == 0:
            return value.float()
        extent = 1 + sum(
            (n - 1) * stride for n, stride in zip(value.shape, value.stride(), strict=True)
        )
        memory = value.as_strided((extent,), (1,)).float()
        return memory.as_strided(value.shape, value.stride(), 0)
    if hasattr(value, "block_shape"):
        base = _widened(value.base)
        return type(value)(base, value.shape, value.strides, value.block_shape)
    return value
