"""One layer's blocks as vLLM 0.32 lays them out on a CPU.

``kv_cache`` [num_blocks, Hkv, block_size, 2 * D] holds, for each block and head, first the keys,
transposed (``[D, block_size]``), then the values (``[block_size, D]``). That is the order of the
instruction sets ``vec`` and ``vec16``; others pack in ways of their own and are refused.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Pages:
    """Keys and values [num_blocks, block_size, Hkv, D] of a layer, as views.

    Args:
        kv_cache: [num_blocks, Hkv, block_size, 2 * D], each block contiguous.
    """

    def __init__(self, kv_cache: Tensor) -> None:
        num_blocks, kv_heads, self.block_size, width = kv_cache.shape
        dim = width // 2
        key, value = kv_cache.view(num_blocks, kv_heads, 2, self.block_size * dim).unbind(2)
        self.key = key.unflatten(2, (dim, self.block_size)).permute(0, 3, 1, 2)
        self.value = value.unflatten(2, (self.block_size, dim)).permute(0, 2, 1, 3)

    def read(self, blocks: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The first ``length`` entries of a request: K and V [1, Hkv, length, D].

        Args:
            blocks: int64 [n], the request's, in order.
            length: at most ``n * block_size``.
        """
        key, value = (
            pages[blocks].flatten(0, 1)[:length].transpose(0, 1).contiguous().unsqueeze(0)
            for pages in (self.key, self.value)
        )
        return key, value

    def write(self, blocks: Tensor, start: int, key: Tensor, value: Tensor) -> None:
        """Put K and V [1, Hkv, K, D] at the positions from ``start`` on."""
        slots = torch.arange(start, start + key.shape[2])
        place = (blocks[slots // self.block_size], slots % self.block_size)
        self.key[place] = key[0].transpose(0, 1)
        self.value[place] = value[0].transpose(0, 1)
