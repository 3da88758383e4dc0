"""Cuts one layer of a cache as a policy says; padding and empty slots are dealt with here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...policies.base import Budget, Kept, LayerCall, Policy, budget_of
from .cache import EvictableCache
from .ragged import RaggedLayer
from .rows import padded


def evict_layer(
    cache: EvictableCache,
    index: int,
    query: Tensor,  # [B, Hq, q, D], of the newest q entries
    scale: float,
    policy: Policy,
    budget: Budget,
    *,
    num_layers: int,
    seen: list[int],
    new: list[int],
    num_lookahead: int = 0,
    state: Any = None,
    lse: Tensor | None = None,  # [B, Hq, q]
) -> Kept:
    """Let ``policy`` choose, and put what stays into the layer.

    Args:
        cache: the cache; its layer ``index`` holds the prompt and ``num_lookahead`` rows behind it.
        index: of the layer.
        query: newest queries, those of the lookahead rows included.
        scale: of the logits.
        policy: who chooses.
        budget: as the user gave it.
        num_layers: of the model.
        seen: tokens of each row's text so far, for budgets that are ratios.
        new: real tokens among each row's queries.
        num_lookahead: newest entries that are lookahead tokens.
        state: the policy's state of this prefill.
        lse: log-sum-exp of the queries' logits, where their attention gave it.
    """
    layer = cache.layers[index]
    assert lse is None or layer.valid is None  # attention with padding gives none
    positions = layer.positions()[:, :, : layer.stored_length - num_lookahead]

    def call(
        row: int | None, skip: int, query: Tensor, tokens: int, leftpad_k: Tensor | None
    ) -> Kept:
        """One row without its first ``skip`` entries, or all rows."""
        rows = slice(None) if row is None else slice(row, row + 1)
        amount = budget_of(budget, index, tokens)
        stored = layer.stored_length - num_lookahead - skip
        return policy.evict(
            LayerCall(
                index,
                num_layers,
                query,
                key[rows, :, skip:],
                value[rows, :, skip:],
                policy.layer_budget(amount, index, num_layers, stored),
                scale,
                leftpad_k,
                state,
                row,
                lse,
            )
        )

    if layer.valid is None:
        key, value = layer.keys, layer.values
        kept = call(None, 0, query, seen[0], None)
        valid = None
    else:
        order, leftpad = _left_padded(layer.valid, num_lookahead)
        key, value = layer.keys, layer.values
        if order is not None:
            prompt = order[:, None, : positions.shape[2]]
            positions = positions.gather(2, prompt.expand_as(positions))
            where = order[:, None, :, None].expand_as(key)
            key, value = key.gather(2, where), value.gather(2, where)
        if policy.handles_padding and (isinstance(budget, int) or len(set(seen)) == 1):
            kept = call(None, 0, query, seen[0], leftpad)
        else:
            kept = _joined(
                [
                    _shifted(
                        call(
                            row,
                            skip,
                            query[row : row + 1, :, query.shape[2] - new[row] - num_lookahead :],
                            seen[row],
                            None,
                        ),
                        skip,
                    )
                    for row, skip in enumerate(leftpad.tolist())
                ]
            )
        real = kept.indices[:, 0] >= 0
        valid = None if bool(real.all()) else real
    empty = kept.indices < 0
    where = kept.indices.clamp(min=0).to(torch.int64)
    kept_positions = positions.gather(2, where).masked_fill(empty, -1)
    if policy.ragged:
        cache.layers[index] = RaggedLayer.replacing(
            layer, kept.key, kept.value, kept_positions, num_lookahead
        )
    else:
        layer.keep(kept.key, kept.value, kept_positions, valid, num_lookahead)
    return kept


def _left_padded(valid: Tensor, num_lookahead: int) -> tuple[Tensor | None, Tensor]:
    """(order [B, S] that moves every hole of a row to its front, or None; holes, int32 [B])."""
    prompt = valid[:, : valid.shape[1] - num_lookahead]
    leftpad = (~prompt).sum(dim=1).to(torch.int32)
    if bool((prompt[:, 1:] >= prompt[:, :-1]).all()):
        return None, leftpad
    return valid.to(torch.int8).argsort(dim=1, stable=True), leftpad


def _shifted(kept: Kept, skip: int) -> Kept:
    """Indices counted from the front of the unpadded row -> from the front of the padded one."""
    return kept._replace(indices=torch.where(kept.indices < 0, -1, kept.indices + skip))


def _joined(rows: list[Kept]) -> Kept:
    """Rows of different lengths as one batch: empty slots at the end."""
    most = max(kept.indices.shape[2] for kept in rows)
    return Kept(
        torch.cat([padded(kept.key, most, 0) for kept in rows]),
        torch.cat([padded(kept.value, most, 0) for kept in rows]),
        torch.cat([padded(kept.indices, most, -1) for kept in rows]),
    )
