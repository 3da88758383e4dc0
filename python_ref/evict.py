"""All four rooms: score, pool, select and gather one layer's prompt cache (paper algorithm 2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .gather import gather_kv
from .scores import column_scores
from .select import select


class Evicted(NamedTuple):
    """What is left of a layer's cache, and why."""

    key: Tensor  # [B, Hkv, K, D]
    value: Tensor  # [B, Hkv, K, D]
    indices: Tensor  # [B, Hkv, K] int32, ascending, -1 in empty slots at the end
    scores: Tensor  # [B, Hkv, N]


def append_observation(indices: Tensor, num_prompt: int, num_rows: int) -> Tensor:
    """Put the L observation positions N .. N+L-1 behind the kept ones, empty slots last."""
    batch, heads, _ = indices.shape
    rows = torch.arange(num_prompt, num_prompt + num_rows, dtype=torch.int32, device=indices.device)
    both = torch.cat([indices, rows.expand(batch, heads, num_rows)], dim=-1)
    return both.gather(-1, (both < 0).to(torch.int8).argsort(dim=-1, stable=True))


def score_and_evict(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N + L, D]
    value: Tensor,  # [B, Hkv, N + L, D]
    budget: int,
    *,
    lse: Tensor | None = None,  # [B, Hq, L]
    scale: float | None = None,
    pool_kernel: int = 7,
    num_sink: int = 0,
    num_recent: int = 0,
    keep_observation: bool = False,
    leftpad_k: Tensor | None = None,  # [B] int32
    seqused_k: Tensor | None = None,  # [B] int32
) -> Evicted:
    """Keep the ``budget`` cache entries per KV head that the observation rows attend to most.

    With ``keep_observation`` the L rows are the end of the prompt: their KV are kept too, inside
    the budget. Without it (lookahead tokens) they are dropped.
    """
    rows, prompt = query.shape[2], key.shape[2] - query.shape[2]
    scores = column_scores(query, key, lse, scale=scale, leftpad_k=leftpad_k, seqused_k=seqused_k)
    indices = select(
        scores,
        budget - rows if keep_observation else budget,
        pool_kernel=pool_kernel,
        num_sink=num_sink,
        num_recent=num_recent,
        leftpad_k=leftpad_k,
        seqused_k=seqused_k,
    )
    if keep_observation:
        indices = append_observation(indices, prompt, rows)
    return Evicted(*gather_kv(key, value, indices), indices, scores)
