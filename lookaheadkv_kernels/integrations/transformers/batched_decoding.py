"""Greedy answers from many evicted caches of one row each, decoded as one batch.

The caches may hold different numbers of entries, in every layer and head. A step reads the model's
weights once for all rows; attention goes by groups of rows that store equally many entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import EvictableCache, EvictableLayer, Observer
from .compat import cache_argument
from .devices import input_device
from .greedy import end_tokens
from .layer_attention import Attended


class _Group:
    """Rows of a layer that store equally many entries, with space behind them for new tokens."""

    def __init__(self, rows: list[int], layers: Sequence[EvictableLayer], space: int) -> None:
        parts = [layer.dense() for layer in layers]
        self.rows = rows
        self.stored = parts[0][0].shape[2]
        self.keys = torch.cat([F.pad(key, (0, 0, 0, space)) for key, _, _ in parts])
        self.values = torch.cat([F.pad(value, (0, 0, 0, space)) for _, value, _ in parts])
        full = torch.cat([full for _, _, full in parts])
        self.full = None if bool(full.all()) else F.pad(full, (0, space), value=True)[:, :, None]
        self.places = torch.tensor(rows, device=self.keys.device)  # in the batch

    def only(self, rows: Sequence[int], device: torch.device) -> bool:
        """Forget all other rows; returns whether any row of this group is left."""
        inside = [place for place, row in enumerate(self.rows) if row in rows]
        if not inside:
            return False
        if len(inside) < len(self.rows):
            self.rows = [self.rows[place] for place in inside]
            chosen = torch.tensor(inside, device=device)
            self.keys, self.values = self.keys[chosen], self.values[chosen]
            self.full = None if self.full is None else self.full[chosen]
        self.places = torch.tensor([rows.index(row) for row in self.rows], device=device)
        return True

    def append(self, key: Tensor, value: Tensor) -> None:
        """Append one token per row, given as [R, Hkv, D] for the whole batch."""
        self.keys[:, :, self.stored] = key[self.places]
        self.values[:, :, self.stored] = value[self.places]
        self.stored += 1

    def attend(self, query: Tensor, scale: float) -> Tensor:
        """[r, Hkv, G, D] -> the same shape; the heads of a group are rows of one attention."""
        return F.scaled_dot_product_attention(
            query,
            self.keys[:, :, : self.stored],
            self.values[:, :, : self.stored],
            attn_mask=None if self.full is None else self.full[..., : self.stored],
            scale=scale,
        )


class _GroupedLayer(EvictableLayer):
    """One layer of all rows, which it holds in groups of equal length."""

    def __init__(self, layers: Sequence[EvictableLayer], space: int) -> None:
        super().__init__()
        self.lazy_initialization(layers[0].keys, layers[0].values)
        self.cumulative_length = max(layer.get_seq_length() for layer in layers)
        by_length: dict[int, list[int]] = {}
        for row, layer in enumerate(layers):
            by_length.setdefault(layer.positions().shape[2], []).append(row)
        self.groups = [
            _Group(rows, [layers[row] for row in rows], space) for rows in by_length.values()
        ]

    @property
    def stored_length(self) -> int:
        """Slots per head of the longest group."""
        return max(group.stored for group in self.groups)

    def only(self, rows: Sequence[int]) -> None:
        """Forget all other rows."""
        self.groups = [group for group in self.groups if group.only(rows, self.keys.device)]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append one token per row; returns the new entries, since the groups hold the rest."""
        self.cumulative_length += 1
        for group in self.groups:
            group.append(key_states[:, :, 0], value_states[:, :, 0])
        return key_states[:], value_states[:]

    def attend(self, scale: float, query: Tensor, key: Tensor, value: Tensor) -> Attended:
        """Attention of the newest token of every row."""
        rows, heads, _, dim = query.shape
        grouped = query.view(rows, key.shape[1], -1, dim)
        out = torch.empty_like(grouped)
        for group in self.groups:
            out[group.places] = group.attend(grouped[group.places], scale)
        return Attended(out.view(rows, 1, heads, dim), None)


class BatchedCache(EvictableCache):
    """Caches of one row each as one batch; the caches themselves do not change.

    Args:
        caches: one row each, of the same model.
        space: most tokens that will be decoded.

    Attributes:
        rows: which of the caches the rows of the batch are.
    """

    def __init__(self, caches: Sequence[EvictableCache], space: int) -> None:
        super().__init__()
        self.rows = list(range(len(caches)))
        self.layers = [
            _GroupedLayer(layers, space)
            for layers in zip(*(cache.layers for cache in caches), strict=True)
        ]
        self.only(self.rows)

    def num_rows(self) -> int | None:
        """Rows that still go on."""
        return len(self.rows)

    def only(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        self.rows = list(rows)
        for layer in self.layers:
            layer.only(self.rows)


@torch.no_grad()
def decode_together(
    model: Any,
    caches: Sequence[EvictableCache],
    logits: Tensor,
    max_tokens: int,
    *,
    observer: Observer | None = None,
) -> list[list[int]]:
    """The greedy answer from each cache, its end token included; the caches do not change.

    A row leaves the batch as soon as its answer has ended.

    Args:
        model: with our attention attached.
        caches: one row each; they may hold different numbers of entries, and texts.
        logits: [len(caches), vocabulary] of the last token of each prompt.
        max_tokens: longest answer.
        observer: sees the queries of the fed tokens; with one the last token of an answer is fed
            too. ``cache.rows`` tells it which caches the batch's rows are.
    """
    ends, device = end_tokens(model), input_device(model)
    answers = [[token] for token in logits.argmax(dim=-1).tolist()]
    starts = [int(cache.layers[0].row_lengths()[0]) for cache in caches]
    batch = BatchedCache(caches, max_tokens)
    rows = batch.rows

    def ended(row: int) -> bool:
        return len(answers[row]) == max_tokens or answers[row][-1] in ends

    while True:
        if observer is None:
            rows = [row for row in rows if not ended(row)]
        if not rows:
            return answers
        if rows != batch.rows:
            batch.only(rows)
        with batch.watched(observer):
            out = model(
                torch.tensor([answers[row][-1:] for row in rows], device=device),
                position_ids=torch.tensor(
                    [[starts[row] + len(answers[row]) - 1] for row in rows], device=device
                ),
                **{cache_argument(model): batch},
                use_cache=True,
                logits_to_keep=1,
            )
        predicted = out.logits[:, -1].argmax(dim=-1).tolist()
        going = [(row, token) for row, token in zip(rows, predicted, strict=True) if not ended(row)]
        for row, token in going:
            answers[row].append(token)
        rows = [row for row, _ in going]
