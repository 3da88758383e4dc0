"""H2O (Zhang et al., 2023), prefill form: entries that all of the prompt's rows attend to most."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..ops import gather_kv, select
from .base import Kept, LayerCall, Policy, check_at_least
from .scoring import causal_column_sums


class H2O(Policy):
    """Column sums of the causal attention of *all* prompt rows, Top-K, no pooling.

    The sums are streamed, block by block and chunk by chunk; no N x N matrix exists. In a later
    turn the sums start anew: its own rows decide about old and new entries alike. The original also
    evicts while decoding; this is what the comparisons in the literature run.

    Args:
        num_recent: newest entries that always stay, inside the budget.
    """

    name: ClassVar[str] = "h2o"
    handles_padding: ClassVar[bool] = True
    watches: ClassVar[bool] = True

    def __init__(self, *, num_recent: int = 32) -> None:
        check_at_least("num_recent", num_recent, 0)
        self.num_recent = num_recent

    def start(self, num_layers: int) -> Any:
        """The layers' sums so far: [B, Hkv, S] each."""
        return [None] * num_layers

    def observe(
        self,
        state: Any,
        index: int,
        query: Tensor,  # [B, Hq, q, D]
        key: Tensor,  # [B, Hkv, S, D]
        leftpad_k: Tensor | None,  # [B] int32
        scale: float,
    ) -> None:
        """Add a chunk's rows."""
        rows, stored = query.shape[2], key.shape[2]
        sums = torch.zeros(key.shape[:3], dtype=torch.float32, device=key.device)
        if state[index] is not None:
            sums[:, :, : stored - rows] = state[index]
        if leftpad_k is None:
            sums += causal_column_sums(query, key, scale)
        else:
            # Rows of padding must not vote: every row of the batch without its own.
            for row, skip in enumerate(leftpad_k.tolist()):
                first = max(0, skip - (stored - rows))
                one = slice(row, row + 1)
                if first < rows:
                    sums[one, :, skip:] += causal_column_sums(
                        query[one, :, first:], key[one, :, skip:], scale
                    )
        state[index] = sums

    def evict(self, call: LayerCall) -> Kept:
        """The largest sums and the newest entries."""
        sums = call.state[call.layer]
        if call.row is not None:
            sums = sums[call.row : call.row + 1, :, sums.shape[2] - call.key.shape[2] :]
        indices = select(
            sums,
            call.budget,
            pool_kernel=1,
            num_recent=min(self.num_recent, call.key.shape[2]),
            leftpad_k=call.leftpad_k,
        )
        return Kept(*gather_kv(call.key, call.value, indices), indices, sums)
