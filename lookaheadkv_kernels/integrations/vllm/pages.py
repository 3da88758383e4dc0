"""One layer's blocks as vLLM 0.32 lays them out on a CPU.

``kv_cache`` [num_blocks, Hkv, block_size, 2 * D] holds, for each block and head, first the keys,
transposed (``[D, block_size]``), then the values (``[block_size, D]``). That is the order of the
instruction sets ``vec`` and ``vec16``; others pack in ways of their own and are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...paged import compact_kv_cache


class Pages:
    """Keys and values of a layer, as views.

    Args:
        kv_cache: [num_blocks, Hkv, block_size, 2 * D], each block and head contiguous.

    Attributes:
        key: [num_blocks, block_size, Hkv, D], the last dimension strided.
        value: [num_blocks, block_size, Hkv, D].
    """

    def __init__(self, kv_cache: Tensor) -> None:
        num_blocks, kv_heads, block_size, width = kv_cache.shape
        dim = width // 2
        key, value = kv_cache.view(num_blocks, kv_heads, 2, block_size * dim).unbind(2)
        self.key = key.unflatten(2, (dim, block_size)).permute(0, 3, 1, 2)
        self.value = value.unflatten(2, (block_size, dim)).permute(0, 2, 1, 3)

    def keys(self, blocks: Tensor, length: int) -> Tensor:
        """A copy of a request's first ``length`` keys, [1, Hkv, length, D].

        Args:
            blocks: int32 [n], the request's, in order.
            length: at most ``n * block_size``.
        """
        return _in_order(self.key, blocks, length)

    def values(self, blocks: Tensor, length: int) -> Tensor:
        """A copy of a request's first ``length`` values, [1, Hkv, length, D]."""
        return _in_order(self.value, blocks, length)


def _in_order(pages: Tensor, blocks: Tensor, length: int) -> Tensor:
    return pages[blocks.long()].flatten(0, 1)[:length].transpose(0, 1).contiguous()[None]


def compact(
    layers: Sequence[Pages],
    indices: Tensor,  # [num_layers, 1, Hkv, K] int32, ascending
    blocks: Tensor,  # [n] int32
    start: int,
) -> None:
    """Move the entries that a request keeps to its positions from ``start`` on, in every layer.

    Args:
        layers: pages of each layer.
        indices: positions that stay.
        blocks: the request's, in order.
        start: ``length - K``, so that they end where the request ends.
    """
    num_layers, _, kv_heads, keep = indices.shape
    table = blocks[None]
    lengths = torch.full((num_layers, 1), keep, dtype=torch.int32)
    starts = torch.full((num_layers, 1), start, dtype=torch.int32)
    compact_kv_cache([pages.value for pages in layers], indices, lengths, table, dst_start=starts)
    dim = layers[0].key.shape[3]
    for head in range(kv_heads):
        # Keys are stored transposed: each of the D numbers of a key lies in a different row.
        rows = [pages.key[:, :, head, :, None] for pages in layers]
        same = indices[:, :, head : head + 1].expand(-1, -1, dim, -1).contiguous()
        compact_kv_cache(rows, same, lengths, table, dst_start=starts)
