"""The Triton backend: NVIDIA GPUs without the compiled library, AMD GPUs, and chips to come.

The four rooms are attention.py (and prefill.py), scores.py (and scores_backward.py), select.py (and
select_long.py) and gather.py; over paged caches paged_scores.py, paged_select.py and compact.py.
heuristics.py chooses tiles and splits, launch.py runs or records
kernels, ops.py checks and calls. Triton itself is imported at the first call of an op.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from .target import available, installed, interpreting, served_device

__all__ = ["available", "installed", "interpreting", "register", "served_device"]

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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        for name in (*OPS, *PAGED_OPS):
            library.impl(name, _on_first_call(name), key, allow_override=True)
    return library
