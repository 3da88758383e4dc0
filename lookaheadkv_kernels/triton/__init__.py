"""The Triton backend: NVIDIA GPUs without the compiled library, AMD GPUs, and chips to come.

The four rooms are attention.py (and prefill.py), scores.py (and scores_backward.py), select.py (and
select_long.py) and gather.py; over paged caches paged_attention.py, paged_scores.py,
paged_select.py and compact.py. heuristics.py chooses tiles and splits, launch.py runs or records
kernels, ops.py checks and calls. Triton itself is imported at the first call of an op.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .target import available, installed, interpreting, leads_prefill, served_device

__all__ = [
    "available",
    "installed",
    "interpreting",
    "leads_prefill",
    "register",
    "route_prefill",
    "served_device",
]

OPS = (
    "lookahead_attention",
    "column_scores",
    "column_scores_backward",
    "prefill_attention",
    "select",
    "gather_kv",
    "score_and_evict",
)
PAGED_OPS = (
    "paged_column_scores",
    "paged_select",
    "paged_score_and_select",
    "paged_score_and_select_out",
    "compact_kv_cache",
)


def _on_first_call(name: str) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        from . import ops, paged_ops

        return getattr(paged_ops if name in PAGED_OPS else ops, name)(*args, **options)

    return call


def register() -> torch.library.Library:
    """Serve the tensors of :func:`served_device` until the returned library is destroyed.

    Kernels that were registered for that device before serve it again from then on.
    """
    key = served_device().upper()
    library = torch.library.Library("lookaheadkv", "IMPL", key)
    for name in (*OPS, *PAGED_OPS):
        _override(library, name, _on_first_call(name), key)
    return library


def route_prefill(device: str, chosen: Callable[[Tensor], bool]) -> torch.library.Library:
    """Serve prefill_attention where ``chosen(query)``, until the returned library is destroyed.

    Other calls go to the kernel that is registered for ``device`` ("cuda") now.
    """
    key = device.upper()
    compiled = torch.library.get_kernel("lookaheadkv::prefill_attention", key)
    ours = _on_first_call("prefill_attention")

    def call(keys: Any, query: Tensor, *args: Any, **options: Any) -> Any:
        if chosen(query):
            return ours(query, *args, **options)
        return compiled.call_boxed(keys, query, *args, **options)

    library = torch.library.Library("lookaheadkv", "IMPL", key)
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
