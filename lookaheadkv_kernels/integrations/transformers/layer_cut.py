"""Cuts one layer of a cache as a policy says, and takes care of padding and empty slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...policies.base import Kept, LayerCall, Policy, Watcher
from ...policies.budget import Budget, budget_of
from .cache import LayerRows
from .ragged import RaggedLayer
from .rows import padded


class Cut(NamedTuple):
    """What an eviction has in common for all layers of a cache.

    The cache holds the prompt, and behind it ``num_dropped`` entries of a draft or of lookahead
    rows, which no layer keeps.
    """

    policy: Policy
    budget: Budget  # as the user gave it
    num_layers: int
    seen: Sequence[int]  # tokens of each row's text so far, for budgets that are ratios
    new: Sequence[int] = ()  # real prompt tokens among each row's queries; for padded batches
    num_draft: int = 0  # newest queries of tokens behind the prompt
    num_dropped: int = 0
    watcher: Watcher | None = None  # has seen the whole prompt for the policy
    first_row: int = 0  # of the user's batch, for error texts

    def room(self, index: int, row: int, num_prompt: int) -> int:
        """Entries that layer ``index`` keeps of the ``num_prompt`` stored ones of a row."""
        count = budget_of(self.budget, index, self.seen[row])
        return self.policy.layer_budget(count, index, self.num_layers, num_prompt)


def evict_layer(cut: Cut, rows: LayerRows) -> Kept:
    """Let the policy choose, and put what it keeps into the layer.

    Args:
        cut: the eviction.
        rows: the layer, and the queries of its newest tokens, those behind the prompt included.

    Raises:
        RuntimeError: the budget cannot hold what the policy pins.
    """
    layer = rows.layer
    assert rows.lse is None or layer.valid is None  # attention with padding gives none
    stored = layer.stored_length - cut.num_dropped
    positions = layer.positions()[:, :, :stored]
    call = LayerCall(
        rows.index,
        cut.num_layers,
        rows.query,
        layer.keys,
        layer.values,
        cut.room(rows.index, 0, stored),
        rows.scale,
        lse=rows.lse,
        num_draft=cut.num_draft,
        num_dropped=cut.num_dropped,
        watcher=cut.watcher,
    )
    valid = None
    if layer.valid is None:
        kept = _choose(cut, call)
    else:
        order, leftpad = _left_padded(layer.valid, cut.num_dropped)
        if order is not None:
            positions = positions.gather(2, order[:, None, :stored].expand_as(positions))
            where = order[:, None, :, None].expand_as(call.key)
            call = call._replace(key=call.key.gather(2, where), value=call.value.gather(2, where))
        kept = _evict_padded(cut, call, leftpad)
        real = kept.indices[:, 0] >= 0
        valid = None if bool(real.all()) else real
    empty = kept.indices < 0
    where = kept.indices.clamp(min=0).to(torch.int64)
    kept_positions = positions.gather(2, where).masked_fill(empty, -1)
    if cut.policy.ragged:
        rows.cache.layers[rows.index] = RaggedLayer.replacing(
            layer, kept.key, kept.value, kept_positions, cut.num_dropped
        )
    else:
        layer.keep(kept.key, kept.value, kept_positions, valid, cut.num_dropped)
    return kept


def _evict_padded(cut: Cut, call: LayerCall, leftpad: Tensor) -> Kept:
    """All rows of a left-padded batch at once if the policy can, or one by one without padding."""
    one_budget = isinstance(cut.budget, int) or len(set(cut.seen)) == 1
    if cut.policy.handles_padding and one_budget:
        return _choose(cut, call._replace(leftpad_k=leftpad), leftpad)
    parts = []
    for row, skip in enumerate(leftpad.tolist()):
        one = slice(row, row + 1)
        first = call.query.shape[2] - cut.new[row] - cut.num_draft
        alone = call._replace(
            query=call.query[one, :, first:],
            key=call.key[one, :, skip:],
            value=call.value[one, :, skip:],
            budget=cut.room(call.layer, row, call.num_prompt - skip),
            row=row,
        )
        parts.append(_shifted(_choose(cut, alone), skip))
    return _joined(parts)


def _choose(cut: Cut, call: LayerCall, leftpad: Tensor | None = None) -> Kept:
    """Let the policy choose; its errors say which row they are about."""
    try:
        return cut.policy.evict(call)
    except RuntimeError as error:
        if "budget must hold" not in str(error):
            raise
        # Of several rows the longest is the one that the budget cannot hold.
        row = call.row or 0 if leftpad is None else int(leftpad.argmin())
        length = call.num_prompt - (0 if leftpad is None else int(leftpad[row]))
        given = cut.budget[call.layer] if isinstance(cut.budget, Sequence) else cut.budget
        raise RuntimeError(
            f"policy {cut.policy.name!r} cannot cut row {cut.first_row + row} of {length} tokens "
            f"in layer {call.layer} to budget {given}, which is {call.budget} entries: {error}"
        ) from error


def _left_padded(valid: Tensor, num_dropped: int) -> tuple[Tensor | None, Tensor]:
    """(order [B, S] that moves every hole of a row to its front, or None; holes, int32 [B])."""
    prompt = valid[:, : valid.shape[1] - num_dropped]
    leftpad = (~prompt).sum(dim=1).to(torch.int32)
    if bool((prompt[:, 1:] >= prompt[:, :-1]).all()):
        return None, leftpad
    return valid.to(torch.int8).argsort(dim=1, stable=True), leftpad


def _shifted(kept: Kept, skip: int) -> Kept:
    """Turn indices into the unpadded row into indices into the padded one."""
    return kept._replace(indices=torch.where(kept.indices < 0, -1, kept.indices + skip))


def _joined(rows: list[Kept]) -> Kept:
    """Rows of different lengths as one batch: empty slots at the end."""
    most = max(kept.indices.shape[2] for kept in rows)
    return Kept(
        torch.cat([padded(kept.key, most, 0) for kept in rows]),
        torch.cat([padded(kept.value, most, 0) for kept in rows]),
        torch.cat([padded(kept.indices, most, -1) for kept in rows]),
    )
