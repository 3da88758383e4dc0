"""A KV cache whose layers can lose entries: physical and logical lengths are kept apart.

Rotary positions are already in the keys, so eviction leaves them alone; new tokens go on at the
logical length. Layers may hold different numbers of entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from .compiled import as_written
from .growing import GrowingBuffers
from .layer_attention import Attended, attend_newest
from .owner import Owner

# `update` returns the keys and values that the model hands to the attention function; this
# attribute tells it which layer of which cache they belong to. It is set on fresh views, which die
# with the call: on the stored tensors it would be a reference cycle, which keeps evicted memory
# alive.
LAYER_ATTRIBUTE = "lookaheadkv_place"
# The offset of its first key by which the mask function knows an evictable cache: it is a plain
# number, which tracing carries, and no cache has a negative one.
EVICTABLE_OFFSET = -1


@dataclass(frozen=True)
class LayerRows:
    """The newest rows of one layer, right after their attention."""

    cache: EvictableCache
    index: int  # of the layer
    query: Tensor  # [B, Hq, q, D], post-RoPE, of the newest q entries
    scale: float  # of the logits
    lse: Tensor | None = None  # [B, Hq, q] float32 of the logits; None if attention gave none

    @property
    def layer(self) -> EvictableLayer:
        """The layer, which holds the rows' own entries."""
        return self.cache.layers[self.index]


# Called once per layer and forward pass; it may cut the layer's entries.
Observer = Callable[[LayerRows], None]


class Choice(NamedTuple):
    """What one layer's eviction chose, and why."""

    positions: Tensor  # [B, Hkv, K] int32, in the row's text; -1 in empty slots
    scores: Tensor | None  # [B, Hkv, N], one per entry before the cut, if the policy scores


class EvictableLayer(CacheLayerMixin):
    """One layer's entries: ``keys``/``values`` [B, Hkv, S, D], newest last.

    Attributes:
        valid: bool [B, S], false at padding and empty slots; None when every slot is real.
        kept_positions: int32 [B, Hkv, K] positions of the first K slots, -1 in empty ones; None
            before the first eviction.
        kept_seen: int64 [B] real tokens a row had seen at the last eviction; None before.
    """

    is_sliding = False
    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.valid: Tensor | None = None
        self.kept_positions: Tensor | None = None
        self.kept_seen: Tensor | None = None
        self.cumulative_length = 0
        self._buffers: GrowingBuffers | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take dtype and device from the first entries."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append [B, Hkv, q, D] of each; returns all that is stored."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.cumulative_length += key_states.shape[-2]
        if self.keys.shape[-2] == 0:
            self.keys, self.values = key_states, value_states
        elif torch.is_grad_enabled():  # backward may still need the old tensors unchanged
            self._replace(
                torch.cat([self.keys, key_states], dim=-2),
                torch.cat([self.values, value_states], dim=-2),
            )
        else:
            coming = key_states.shape[-2]
            if self._buffers is None or not self._buffers.takes(self.keys, coming):
                self._buffers = GrowingBuffers(self.keys, self.values, coming)
            self.keys, self.values = self._buffers.append(key_states, value_states)
        return self.keys[:], self.values[:]

    def _replace(self, keys: Tensor, values: Tensor) -> None:
        """Store other entries, which own their memory, and release the buffers of the old ones."""
        self.keys, self.values, self._buffers = keys, values, None

    def extend_valid(self, padding: Tensor | None, num_new: int) -> None:
        """Note which of the ``num_new`` newest entries are real (bool [B, q]; None: all)."""
        if padding is None and self.valid is None:
            return
        batch, stored = self.keys.shape[0], self.keys.shape[2]
        if self.valid is None:
            self.valid = torch.ones(
                batch, stored - num_new, dtype=torch.bool, device=self.keys.device
            )
        new = self.valid.new_ones(batch, num_new) if padding is None else padding
        self.valid = torch.cat([self.valid, new.to(self.valid.device)], dim=1)

    def hide(self, seen: Tensor) -> None:
        """Turn entries since the last eviction into padding where ``seen`` (bool [B, t]) is false.

        A row that ended before the others has such tokens.
        """
        tail = self.stored_length - (
            0 if self.kept_positions is None else self.kept_positions.shape[2]
        )
        if tail == 0 or bool(seen[:, -tail:].all()):
            return
        hidden = F.pad(~seen[:, -tail:], (self.stored_length - tail, 0)).to(self.keys.device)
        self.valid = ~hidden if self.valid is None else self.valid & ~hidden

    def attend(self, scale: float, query: Tensor, key: Tensor, value: Tensor) -> Attended:
        """Attention of the newest q tokens over what is stored."""
        return attend_newest(scale, query, key, value, self.valid)

    def keep(
        self,
        key: Tensor,  # [B, Hkv, K, D]
        value: Tensor,  # [B, Hkv, K, D]
        positions: Tensor,  # [B, Hkv, K] int32
        valid: Tensor | None,  # [B, K] bool
        num_dropped: int,
    ) -> None:
        """Replace all entries; the ``num_dropped`` newest were lookahead rows, never seen."""
        self.kept_seen = self.row_lengths() - num_dropped
        self.cumulative_length -= num_dropped
        self._replace(key, value)
        self.valid = valid
        self.kept_positions = positions

    def row_lengths(self) -> Tensor:
        """Real tokens each row has seen: int64 [B]."""
        batch, _, stored, _ = self.keys.shape
        tail = 0 if self.kept_positions is None else self.kept_positions.shape[2]
        if self.valid is None:
            lengths = torch.full((batch,), stored - tail, device=self.keys.device)
        else:
            lengths = self.valid[:, tail:].sum(dim=1)
        return lengths if self.kept_seen is None else lengths + self.kept_seen

    def positions(self) -> Tensor:
        """Position of every stored entry in its row's text: int32 [B, Hkv, S]; -1 where empty."""
        batch, heads, stored, _ = self.keys.shape
        tail = 0 if self.kept_positions is None else self.kept_positions.shape[2]
        seen = 0 if self.kept_seen is None else self.kept_seen[:, None]
        if self.valid is None:
            new = torch.arange(stored - tail, device=self.keys.device).expand(batch, -1) + seen
        else:
            real = self.valid[:, tail:]
            new = (real.cumsum(dim=1) - 1 + seen).masked_fill(~real, -1)
        new = new.to(torch.int32)[:, None].expand(batch, heads, stored - tail)
        return new if self.kept_positions is None else torch.cat([self.kept_positions, new], dim=2)

    def dense(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values [B, Hkv, S, D], and which of them are real: bool [B, Hkv, S]."""
        return self.keys, self.values, self.positions() >= 0

    @property
    def stored_length(self) -> int:
        """Physical length: slots per head."""
        return self.keys.shape[-2] if self.is_initialized else 0

    def nbytes(self) -> int:
        """Bytes of the stored K and V."""
        return self.keys.nbytes + self.values.nbytes if self.is_initialized else 0

    def get_seq_length(self) -> int:
        """Logical length: tokens seen, padding included, where the next one goes."""
        return self.cumulative_length

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(slots the next step attends to, tokens that went before the first of them)."""
        return self.stored_length + query_length, self.cumulative_length - self.stored_length

    def crop(self, tokens_to_remove: int) -> None:
        """Always an error: what was evicted cannot come back (assisted generation needs that)."""
        raise NotImplementedError("an evictable cache cannot be cropped")

    def _per_row(self, change: Callable[[Tensor], Tensor]) -> None:
        for name in ("keys", "values", "valid", "kept_positions", "kept_seen"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, change(tensor))
        self._buffers = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in another order (beam search)."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row ``repeats`` times."""
        self._per_row(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """These rows alone."""
        self._per_row(lambda tensor: tensor.index_select(0, indices.to(tensor.device)))

    def fork(self) -> EvictableLayer:
        """An independent copy; it shares the stored entries, because those never change."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other


class EvictableCache(Cache):
    """Evictable layers, made as the model runs, and the observer that watches them.

    Attributes:
        logits: [B, vocabulary] of the last token of the last prompt, before anything was evicted;
            None before a prefill.
        owner: the model whose entries these are; None as long as nobody's.
        choices: what each layer's last eviction chose; empty unless the runner records it.
    """

    layers: list[EvictableLayer]
    logits: Tensor | None
    choices: list[Choice]
    owner: Owner | None
    _prompt_end: int  # logical length at which `logits` hold
    _pending: int | None  # layer that got entries and has not attended yet

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._observer: Observer | None = None
        self.reset()

    @as_written
    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append to one layer; what is returned carries its place (see ``LAYER_ATTRIBUTE``).

        Raises:
            RuntimeError: the layer before did not attend here: the model is not attached.
        """
        if self._pending is not None:
            raise RuntimeError(
                "this cache needs the attention of the model that eviction was attached to, and "
                f"layer {self._pending} ran another: was it detached or set to another one?"
            )
        self._pending = layer_idx
        while len(self.layers) <= layer_idx:
            self.layers.append(EvictableLayer())
        key, value = self.layers[layer_idx].update(key_states, value_states)
        place = (self, layer_idx)
        setattr(key, LAYER_ATTRIBUTE, place)
        setattr(value, LAYER_ATTRIBUTE, place)
        return key, value

    def attend(
        self,
        index: int,
        scale: float,
        query: Tensor,  # [B, Hq, q, D]
        key: Tensor,  # [B, Hkv, S, D]
        value: Tensor,  # [B, Hkv, S, D]
        padding: Tensor | None,  # [B, q] bool
    ) -> Tensor:
        """Attention of one layer, then the observer.

        Raises:
            RuntimeError: the layer has attended since it got entries.
        """
        if self._pending != index:
            raise RuntimeError(
                f"layer {index} attends twice to what its cache returned once: eviction cannot "
                "follow that"
            )
        self._pending = None
        layer = self.layers[index]
        layer.extend_valid(padding, query.shape[2])
        out, lse = layer.attend(scale, query, key, value)
        if self._observer is not None:
            self._observer(LayerRows(self, index, query, scale, lse))
        return out

    @contextmanager
    def watched(self, observer: Observer | None) -> Iterator[None]:
        """Within the block ``observer`` sees every layer's attention; None: nobody does."""
        before, self._observer = self._observer, observer
        try:
            yield
        finally:
            self._observer = before

    def fork(self) -> EvictableCache:
        """A second cache that starts as this one is now."""
        other = EvictableCache()
        other.adopt(self)
        other.layers = [layer.fork() for layer in self.layers]
        return other

    def adopt(self, other: EvictableCache) -> None:
        """Become what ``other`` is, which is given up."""
        self.layers, self.logits, self.choices = other.layers, other.logits, other.choices
        self.owner, self._prompt_end = other.owner, other._prompt_end
        self._pending = None

    def end_prompt(self, logits: Tensor, choices: list[Choice]) -> None:
        """Note what a prefill leaves beside the entries."""
        self.logits, self.choices = logits, choices
        self._prompt_end = self.get_seq_length()

    def next_logits(self) -> Tensor | None:
        """``logits`` if nothing came behind the last prompt; else None."""
        return self.logits if self.get_seq_length() == self._prompt_end else None

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """(slots the next step attends to, the mark of an evictable cache)."""
        return super().get_mask_sizes(*args, **kwargs)[0], EVICTABLE_OFFSET

    def reset(self) -> None:
        """Forget all entries, and what a prefill left beside them."""
        self.layers = []
        self.logits, self.choices = None, []
        self.owner = None
        self._prompt_end = -1
        self._pending = None

    def hide(self, seen: Tensor) -> None:
        """See :meth:`EvictableLayer.hide`."""
        for layer in self.layers:
            layer.hide(seen)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in another order (beam search)."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row ``repeats`` times."""
        super().batch_repeat_interleave(repeats)
        if self.logits is not None:
            self.logits = self.logits.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """These rows alone."""
        super().batch_select_indices(indices)
        if self.logits is not None:
            self.logits = self.logits.index_select(0, indices.to(self.logits.device))

    def num_rows(self) -> int | None:
        """B; None while the cache is empty."""
        return int(self.layers[0].keys.shape[0]) if self.layers else None

    def row_lengths(self) -> Tensor | None:
        """Real tokens each row has seen, int64 [B]; None while the cache is empty."""
        return self.layers[0].row_lengths() if self.layers else None

    def nbytes(self) -> int:
        """Bytes of K and V in all layers."""
        return sum(layer.nbytes() for layer in self.layers)
