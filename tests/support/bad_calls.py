"""Cases of bad input: a good call of an op, one change, and the message it must give."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lookaheadkv_kernels.backend import ENVIRONMENT_VARIABLE

# A GPU cannot look at values without a host sync, so Triton's ops check none, in the interpreter
# neither.
compiled_cpu = pytest.mark.skipif(
    os.environ.get(ENVIRONMENT_VARIABLE, "cpu") != "cpu", reason="values: the compiled CPU ops"
)


class Case(NamedTuple):
    """``change`` of the good call of each of ``ops`` must fail with ``message``."""

    ops: tuple[str, ...]
    change: dict[str, Any]
    message: str


def expand(cases: list[Case]) -> list[Any]:
    """One pytest case per op."""
    return [
        pytest.param(op, case.change, case.message, id=f"{op}: {case.message}")
        for case in cases
        for op in case.ops
    ]


def to_meta(tensor: Tensor) -> Tensor:
    """With the strides kept, which ``tensor.to`` does not do."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
