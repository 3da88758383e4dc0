"""A layer whose KV heads keep different numbers of entries and allocate memory for those alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import EvictableLayer
from .layer_attention import Attended
from .masks import bottom_right_mask


class RaggedLayer(EvictableLayer):
    """Stores the kept entries of all heads in one flat buffer, and later tokens densely behind it.

    Head h of row b holds entries ``offsets[b * Hkv + h]`` to ``offsets[b * Hkv + h + 1]`` of the
    flat buffers, in position order. It decodes like any other layer and does not evict again.

    Attributes:
        keys, values: the tail [B, Hkv, t, D].
        flat_keys, flat_values: [T, D].
        offsets: B * Hkv + 1 numbers.
    """

    flat_keys: Tensor
    flat_values: Tensor
    offsets: list[int]

    @classmethod
    def replacing(
        cls,
        layer: EvictableLayer,
        key: Tensor,  # [B, Hkv, K, D]
        value: Tensor,  # [B, Hkv, K, D]
        positions: Tensor,  # [B, Hkv, K] int32, -1 in empty slots
        num_dropped: int,
    ) -> RaggedLayer:
        """What ``layer`` becomes when it keeps these; see :meth:`EvictableLayer.keep`."""
        ragged = cls()
        full = positions >= 0
        ragged.flat_keys, ragged.flat_values = key[full], value[full]
        ragged._count_offsets(positions)
        # Not a view: it would keep the memory alive that eviction has just freed.
        shape = [*key.shape[:2], 0, key.shape[3]]
        ragged.lazy_initialization(key.new_empty(shape), value.new_empty(shape))
        ragged.kept_positions = positions
        ragged.kept_seen = layer.row_lengths() - num_dropped
        ragged.cumulative_length = layer.cumulative_length - num_dropped
        return ragged

    def _count_offsets(self, positions: Tensor) -> None:
        sizes = (positions >= 0).sum(dim=2).flatten()
        self.offsets = [0, *sizes.cumsum(dim=0).tolist()]

    def extend_valid(self, padding: Tensor | None, num_new: int) -> None:
        """Only real tokens can follow.

        Raises:
            ValueError: there is padding among the new tokens.
        """
        if padding is not None:
            raise ValueError("a ragged cache takes no padded tokens")

    def attend(self, scale: float, query: Tensor, key: Tensor, value: Tensor) -> Attended:
        """Attention of the newest q tokens, head by head; ``key`` is the tail."""
        batch, heads, rows, dim = query.shape
        kv_heads = key.shape[1]
        group = heads // kv_heads
        out = query.new_empty(batch, rows, heads, dim)
        for place in range(batch * kv_heads):
            row, head = divmod(place, kv_heads)
            mine = slice(head * group, (head + 1) * group)
            kept = slice(self.offsets[place], self.offsets[place + 1])
            k = torch.cat([self.flat_keys[kept], key[row, head]])
            v = torch.cat([self.flat_values[kept], value[row, head]])
            mask = bottom_right_mask(rows, len(k), None, query.device)
            # The group's queries share their keys: they are rows of one attention.
            one = F.scaled_dot_product_attention(
                query[row, mine].reshape(1, 1, group * rows, dim),
                k[None, None],
                v[None, None],
                attn_mask=None if mask is None else mask.repeat(1, 1, group, 1),
                scale=scale,
            )
            out[row, :, mine] = one.view(group, rows, dim).transpose(0, 1)
        return Attended(out, None)

    def keep(self, *args: Any, **kwargs: Any) -> None:
        """Always an error: a second cut of a ragged cache is refused before the prompt is run."""
        raise NotImplementedError("a ragged layer cannot be cut again")

    def row_lengths(self) -> Tensor:
        """Real tokens each row has seen: int64 [B]."""
        assert self.kept_seen is not None
        return self.kept_seen + self.keys.shape[2]

    def positions(self) -> Tensor:
        """Position of every stored entry in its row's text: int32 [B, Hkv, S]; -1 where empty."""
        assert self.kept_positions is not None and self.kept_seen is not None
        batch, heads, tail, _ = self.keys.shape
        new = torch.arange(tail, device=self.keys.device) + self.kept_seen[:, None]
        new = new.to(torch.int32)[:, None].expand(batch, heads, tail)
        return torch.cat([self.kept_positions, new], dim=2)

    def dense(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values [B, Hkv, S, D], and which of them are real: bool [B, Hkv, S]."""
        full = self.positions() >= 0
        kept = full[:, :, : full.shape[2] - self.keys.shape[2]]
        key, value = (
            flat.new_zeros(*kept.shape, flat.shape[1])
            for flat in (self.flat_keys, self.flat_values)
        )
        key[kept], value[kept] = self.flat_keys, self.flat_values
        return torch.cat([key, self.keys], dim=2), torch.cat([value, self.values], dim=2), full

    @property
    def stored_length(self) -> int:
        """Physical length of the longest head."""
        sizes = (stop - start for start, stop in zip(self.offsets, self.offsets[1:], strict=False))
        return max(sizes) + int(self.keys.shape[2])

    def nbytes(self) -> int:
        """Bytes of the stored K and V."""
        return super().nbytes() + self.flat_keys.nbytes + self.flat_values.nbytes

    def _per_row(self, change: Callable[[Tensor], Tensor]) -> None:
        batch, heads = self.keys.shape[:2]
        starts = self.offsets[::heads]
        parts = [
            slice(starts[row], starts[row + 1]) for row in change(torch.arange(batch)).tolist()
        ]
        self.flat_keys = torch.cat([self.flat_keys[part] for part in parts])
        self.flat_values = torch.cat([self.flat_values[part] for part in parts])
        super()._per_row(change)
        assert self.kept_positions is not None
        self._count_offsets(self.kept_positions)
