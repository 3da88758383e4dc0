"""Room 4: the kept K and V, in position order."""

from __future__ import annotations

from torch import Tensor


def gather_kv(
    key: Tensor,  # [B, Hkv, S, D]
    value: Tensor,  # [B, Hkv, S, D]
    indices: Tensor,  # [B, Hkv, K] int32, -1 = empty slot
) -> tuple[Tensor, Tensor]:
    """Rows ``indices`` of key and value: two [B, Hkv, K, D]; an empty slot is all zeros."""
    empty = (indices < 0)[..., None]
    where = indices.clamp(min=0).long()[..., None].expand(-1, -1, -1, key.shape[-1])
    if key.shape[2] == 0:
        return key.new_zeros(where.shape), value.new_zeros(where.shape)
    return key.gather(2, where).masked_fill(empty, 0), value.gather(2, where).masked_fill(empty, 0)
