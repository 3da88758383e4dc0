"""H2O (Zhang et al., 2023), prefill form: entries that all of the prompt's rows attend to most."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .base import Chunk, LayerCall, Watcher
from .budget import check_at_least
from .scoring import ScorePolicy, causal_column_sums


class H2O(ScorePolicy):
    """Column sums of the causal attention of *all* prompt rows, Top-K, no pooling.

    The sums are streamed, block by block and chunk by chunk; no N x N matrix exists. In a later
    turn the sums start anew: its own rows decide about old and new entries alike. The original also
    evicts while decoding; this is what the comparisons in the literature run.

    Args:
        num_recent: newest entries that always stay, inside the budget.
    """

    name: ClassVar[str] = "h2o"
    handles_padding: ClassVar[bool] = True

    def __init__(self, *, num_recent: int = 32) -> None:
        check_at_least("num_recent", num_recent, 0)
        self.num_recent = num_recent

    def start(self, num_layers: int) -> Watcher:
        """The layers' sums, still empty."""
        return _ColumnSums()

    def score(self, call: LayerCall) -> Tensor:
        """The sums of a layer; of one row without its padding, if the call is about one row."""
        sums = call.watched_by(_ColumnSums).of_layer[call.layer]
        if call.row is None:
            return sums
        return sums[call.row : call.row + 1, :, sums.shape[2] - call.key.shape[2] :]


class _ColumnSums(Watcher):
    """Each layer's sums so far, over all rows that have been read: float32 [B, Hkv, S]."""

    def __init__(self) -> None:
        self.of_layer: dict[int, Tensor] = {}

    def observe(self, chunk: Chunk) -> None:
        """Add a chunk's rows."""
        query, key = chunk.query, chunk.key
        rows, stored = query.shape[2], key.shape[2]
        sums = torch.zeros(key.shape[:3], dtype=torch.float32, device=key.device)
        if chunk.layer in self.of_layer:
            sums[:, :, : stored - rows] = self.of_layer[chunk.layer]
        if chunk.leftpad_k is None:
            sums += causal_column_sums(query, key, chunk.scale)
        else:
            # Rows of padding must not vote: every row of the batch without its own.
            for row, skip in enumerate(chunk.leftpad_k.tolist()):
                first = max(0, skip - (stored - rows))
                one = slice(row, row + 1)
                if first < rows:
                    sums[one, :, skip:] += causal_column_sums(
                        query[one, :, first:], key[one, :, skip:], chunk.scale
                    )
        self.of_layer[chunk.layer] = sums
