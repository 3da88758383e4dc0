"""The paper-style eager code under torch.compile: what a user gets for one decorator."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.peers.eager import eager_score_and_evict


@functools.lru_cache(maxsize=1)
def _compiled(*sizes: object) -> Callable[..., Any]:
    """Compiled anew for every size: past a few, torch.compile falls back to eager silently."""
    torch.compiler.reset()
    return torch.compile(eager_score_and_evict, dynamic=False)


def compiled_score_and_evict(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N + L, D]
    value: Tensor,  # [B, Hkv, N + L, D]
    budget: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`~bench.peers.eager.eager_score_and_evict`, compiled for these very sizes."""
    function = _compiled(query.shape, key.shape, query.dtype, query.device, budget)
    result: tuple[Tensor, Tensor, Tensor, Tensor] = function(query, key, value, budget)
    return result
