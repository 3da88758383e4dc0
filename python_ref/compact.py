"""Room 4 over a paged cache: the kept entries move together, in place."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .paged import slots


def compact_kv_cache(
    caches: Sequence[Tensor],  # num_layers * P, each [num_blocks, page_size, Hkv, *]
    indices: Tensor,  # [num_layers, R, Hkv or 1, K] int32
    kept_lens: Tensor,  # [num_layers, R] int32
    src_block_table: Tensor,  # [R, max_blocks] int32
    dst_block_table: Tensor | None = None,  # [R, max_dst_blocks] int32
    *,
    dst_start: Tensor | None = None,  # [num_layers, R] int32
) -> None:
    """Position indices[layer, r, h, j] of each head goes to dst_start[layer, r] + j.

    Everything is read before anything is written.
    """
    num_layers, num_requests, index_heads, num_slots = indices.shape
    dst_block_table = src_block_table if dst_block_table is None else dst_block_table
    parts = len(caches) // num_layers
    for at, cache in enumerate(caches):
        layer, before = at // parts, cache.clone()
        page_size, kv_heads = cache.shape[1:3]
        for r in range(num_requests):
            start = 0 if dst_start is None else int(dst_start[layer, r])
            count = min(int(kept_lens[layer, r]), num_slots)
            for h in range(kv_heads):
                kept = indices[layer, r, h % index_heads, :count]
                kept = kept[kept >= 0]
                to = kept.new_tensor(range(start, start + len(kept)))
                from_block, from_slot = slots(src_block_table[r], page_size, kept)
                to_block, to_slot = slots(dst_block_table[r], page_size, to)
                cache[to_block, to_slot, h] = before[from_block, from_slot, h]
