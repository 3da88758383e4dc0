"""Launches kernels, or records the launches of a call so that others can compile them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import interpreter
from .splits import Target
from .target import interpreting, target_of


@dataclass(frozen=True)
class Launch:
    """One kernel launch: the arguments by name, ``num_warps`` and ``num_stages`` among them."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]


class _Recording:
    """Launches of the calls made inside :func:`record`, for a target that need not be here."""

    target: Target | None = None
    launches: list[Launch]


_recording = _Recording()


@contextlib.contextmanager
def record(target: Target) -> Iterator[list[Launch]]:
    """Collect the launches of the calls inside, for ``target``, and run none of them.

    The ops may be given meta tensors. What they return is unwritten.
    """
    _recording.target, _recording.launches = target, []
    try:
        yield _recording.launches
    finally:
        _recording.target = None


def target_for(tensor: Tensor) -> Target:
    """The target to choose tiles for."""
    return _recording.target or target_of(tensor)


def launch(kernel: Any, grid: tuple[int, ...], like: Tensor, **arguments: Any) -> None:
    """Run ``kernel`` on the device and current stream of ``like``. An empty grid runs nothing."""
    if 0 in grid:
        return
    if _recording.target is not None:
        _recording.launches.append(Launch(kernel, grid, arguments))
    elif interpreting():
        interpreter.run(kernel, grid, arguments)
    else:
        with torch.cuda.device(like.device):
            kernel[grid](**arguments)
