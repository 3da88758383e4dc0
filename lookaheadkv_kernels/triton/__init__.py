"""The Triton backend: NVIDIA GPUs without the compiled library, AMD GPUs, and chips to come.

The four rooms are attention.py (and prefill.py), scores.py (and scores_backward.py), select.py
(with select_keys.py, select_row.py and select_long.py) and gather.py; over paged caches
paged_plan.py, paged_attention.py, paged_scores.py, paged_select.py and compact.py. problem.py
describes a call to them, splits.py chooses tiles and splits, launch.py runs or records kernels. An
op checks its arguments and makes its results by _outputs.py; ops.py and paged_ops.py then call the
rooms. Triton itself is imported at the first call of an op.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _outputs, _outputs_paged  # noqa: F401
from .._checks import Checks
from .._library import NAMESPACE
from .target import available, installed, interpreting, leads_prefill, served_device

__all__ = [
    "available",
    "implementation",
    "installed",
    "interpreting",
    "leads_prefill",
    "register",
    "route_prefill",
    "served_device",
]


@functools.cache
def implementation(name: str) -> Callable[..., Any]:
    """The op ``name`` on Triton, whatever serves its tensors now: check, allocate, launch."""
    op = _outputs.OPS[name]
    names = tuple(inspect.signature(op.front).parameters)

    def call(*args: Any, **options: Any) -> Any:
        checked = op.front(*args, **options)
        Checks(name).aligned({**dict(zip(names, args, strict=False)), **options})
        _launches(name)(*checked)
        return op.results(checked)

    return call


@functools.cache
def _launches(name: str) -> Callable[..., None]:
    """The op's function in ops.py or paged_ops.py."""
    from . import ops, paged_ops

    function: Callable[..., None] = {**vars(ops), **vars(paged_ops)}[name]
    return function


def register() -> torch.library.Library:
    """Serve the tensors of :func:`served_device` until the returned library is destroyed.

    Kernels that were registered for that device before serve it again from then on.
    """
    key = served_device().upper()
    library = torch.library.Library(NAMESPACE, "IMPL", key)
    for name in _outputs.OPS:
        _override(library, name, implementation(name), key)
    return library


def route_prefill(device: str, chosen: Callable[[Tensor], bool]) -> torch.library.Library:
    """Serve prefill_attention where ``chosen(query)``, until the returned library is destroyed.

    Other calls go to the kernel that is registered for ``device`` ("cuda") now.
    """
    key = device.upper()
    compiled = torch.library.get_kernel(f"{NAMESPACE}::prefill_attention", key)
    ours = implementation("prefill_attention")

    def call(keys: Any, query: Tensor, *args: Any, **options: Any) -> Any:
        if chosen(query):
            return ours(query, *args, **options)
        return compiled.call_boxed(keys, query, *args, **options)

    library = torch.library.Library(NAMESPACE, "IMPL", key)
    _override(library, "prefill_attention", call, key, with_keyset=True)
    return library


def _override(
    library: torch.library.Library,
    name: str,
    function: Callable[..., Any],
    key: str,
    with_keyset: bool = False,
) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        library.impl(name, function, key, with_keyset=with_keyset, allow_override=True)
