"""An evictable KV cache on transformers' own interfaces: a cache class and an attention function.

Nothing is patched: the cache is a ``Cache`` of our layers, and the observation queries are seen by
an attention function registered under a name of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache, DynamicLayer
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ATTENTION_NAME = "lookaheadkv_observe"


class Evicted(NamedTuple):
    """What ``lookaheadkv::score_and_evict`` gave for one layer."""

    key: Tensor  # [B, Hkv, K, D]
    value: Tensor  # [B, Hkv, K, D]
    indices: Tensor  # [B, Hkv, K] int32
    scores: Tensor  # [B, Hkv, N] float32


class EvictableLayer(DynamicLayer):
    """A growing layer that tells its logical length (tokens seen) from its physical one (stored).

    Rotary positions are already in the keys, so eviction leaves them alone: only new tokens need
    the logical length, and the mask the difference of the two.
    """

    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.cumulative_length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append [B, Hkv, q, D] of each; returns all that is stored."""
        self.cumulative_length += key_states.shape[-2]
        return super().update(key_states, value_states, *args, **kwargs)

    @property
    def stored_length(self) -> int:
        """Physical length: entries per head."""
        return self.keys.shape[-2] if self.is_initialized else 0

    def get_seq_length(self) -> int:
        """Logical length: tokens seen, where the next position starts."""
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys the next step attends to, positions before the first of them)."""
        return self.stored_length + query_length, self.cumulative_length - self.stored_length

    def crop(self, tokens_to_remove: int) -> None:
        """Always ``NotImplementedError``: what was evicted cannot be brought back."""
        raise NotImplementedError("an evictable cache layer cannot be cropped")

    def fork(self) -> EvictableLayer:
        """A layer that continues on its own; ``update`` never writes in place, so it shares."""
        other = EvictableLayer()
        if self.is_initialized:
            other.lazy_initialization(self.keys, self.values)
            other.keys, other.values = self.keys, self.values
            other.cumulative_length = self.cumulative_length
        return other


class EvictableCache(Cache):
    """A ``Cache`` of :class:`EvictableLayer`, one per model layer, made as the model runs."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=EvictableLayer)

    def fork(self) -> EvictableCache:
        """A second cache that starts as this one is now."""
        other = EvictableCache()
        other.layers = [layer.fork() for layer in self.layers]
        return other

    def nbytes(self) -> int:
        """Bytes of K and V in all layers."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)

    def evict(self, queries: dict[int, Tensor], budget: int) -> list[Evicted]:
        """Cut every layer to ``budget`` entries per KV head; ``queries[layer]`` [B, Hq, L, D].

        The L queries are those of the last L tokens in the cache, whose entries stay.
        """
        results = []
        for index, layer in enumerate(self.layers):
            evicted = Evicted(
                *torch.ops.lookaheadkv.score_and_evict(
                    queries[index], layer.keys, layer.values, budget, keep_observation=True
                )
            )
            layer.keys, layer.values = evicted.key, evicted.value
            results.append(evicted)
        return results


class ObservationTail:
    """sdpa that can remember the last ``num_rows`` post-RoPE queries of every layer."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._sdpa = AttentionInterface()["sdpa"]
        self._record: dict[int, Tensor] | None = None

    def register(self) -> str:
        """Make it known to transformers; returns the name for ``attn_implementation``."""
        AttentionInterface.register(ATTENTION_NAME, self)
        AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
        return ATTENTION_NAME

    @contextmanager
    def recording(self, record: dict[int, Tensor]) -> Iterator[None]:
        """Within the block, ``record[layer]`` [B, Hq, <= num_rows, D] follows the prompt's end.

        Prefill may come in chunks of any size, and go on from an earlier record.
        """
        self._record = record
        try:
            yield
        finally:
            self._record = None

    def __call__(
        self,
        module: Any,  # the attention layer, which knows its layer_idx
        query: Tensor,  # [B, Hq, q, D]
        key: Tensor,  # [B, Hkv, S, D]
        value: Tensor,  # [B, Hkv, S, D]
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """The attention function of transformers' interface."""
        if self._record is not None:
            layer = module.layer_idx
            rows = query[:, :, -self.num_rows :]
            if layer in self._record and rows.shape[2] < self.num_rows:
                rows = torch.cat([self._record[layer], rows], dim=2)[:, :, -self.num_rows :]
            self._record[layer] = rows.clone()  # not a view that keeps the whole chunk alive
        return self._sdpa(module, query, key, value, attention_mask, **kwargs)
