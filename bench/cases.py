"""Inputs of the benchmarks: random, fresh, at the shapes of real models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One attention layer: sizes as in the DESIGN's section 2, batch 1."""

    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    num_rows: int = 32
    num_prompt: int = 32_768
    dtype: torch.dtype = torch.bfloat16

    @property
    def num_keys(self) -> int:
        return self.num_prompt + self.num_rows

    @property
    def key_bytes(self) -> int:
        """Bytes of K (or V): what one sweep has to read."""
        return self.num_kv_heads * self.num_keys * self.head_dim * self.dtype.itemsize

    @property
    def score_flops(self) -> int:
        """FLOPs of q k^T."""
        return 2 * self.num_heads * self.num_rows * self.num_keys * self.head_dim

    def inputs(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """query [1, Hq, L, D], key and value [1, Hkv, N + L, D]."""
        generator = torch.Generator().manual_seed(seed)

        def normal(heads: int, length: int) -> Tensor:
            return torch.randn(1, heads, length, self.head_dim, generator=generator).to(self.dtype)

        return (
            normal(self.num_heads, self.num_rows),
            normal(self.num_kv_heads, self.num_keys),
            normal(self.num_kv_heads, self.num_keys),
        )


LLAMA_8B = Case()
