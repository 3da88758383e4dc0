"""What one call is about, as the rooms are told it: the twin of csrc/core/problem.h and paged.h."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import Inputs
from .._checks_paged import PagedInputs
from .paged_plan import Plan

QUANTISED = {
    torch.float8_e4m3fn: "float8_e4m3fn",
    torch.float8_e5m2: "float8_e5m2",
    torch.int8: "int8",
}


def strides(name: str, tensor: Tensor | None, letters: str = "bhs") -> dict[str, int]:
    """Kernel arguments: the first strides of a tensor, one per letter; 0 if there is no tensor.

    ``strides("q", query)`` gives ``stride_qb``, ``stride_qh`` and ``stride_qs``.
    """
    steps = (0,) * len(letters) if tensor is None else tensor.stride()
    return {f"stride_{name}{letter}": steps[i] for i, letter in enumerate(letters)}


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """The same numbers without gaps."""
    return None if tensor is None else tensor.contiguous()


@dataclass(frozen=True)
class Problem:
    """One scoring call; see lookaheadkv_kernels/ops.py for the letters."""

    query: Tensor  # [B, Hq, L, D], or all rows [B, Hq, N + L, D] of a prefill
    key: Tensor  # [B, Hkv, N + L, D]
    value: Tensor | None  # like key
    num_rows: int  # L
    scale: float
    leftpad_k: Tensor | None  # [B] int32, contiguous
    seqused_k: Tensor | None

    @classmethod
    def of(cls, inputs: Inputs, num_rows: int | None = None) -> Problem:
        """The problem of checked inputs; ``num_rows``: L where the query has more rows."""
        query, scale = inputs.query, inputs.scale
        return cls(
            query,
            inputs.key,
            inputs.value,
            query.shape[2] if num_rows is None else num_rows,
            1.0 / math.sqrt(query.shape[3]) if scale is None else scale,
            contiguous(inputs.leftpad_k),
            contiguous(inputs.seqused_k),
        )

    @property
    def batch(self) -> int:
        return self.query.shape[0]

    @property
    def heads(self) -> int:
        return self.query.shape[1]

    @property
    def kv_heads(self) -> int:
        return self.key.shape[1]

    @property
    def num_prompt(self) -> int:
        return self.key.shape[2] - self.num_rows

    @property
    def num_keys(self) -> int:
        return self.key.shape[2]

    @property
    def head_dim(self) -> int:
        return self.query.shape[3]

    @property
    def units(self) -> int:
        """Independent pieces of work: B * Hkv."""
        return self.batch * self.kv_heads

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def folded(self) -> int:
        """Rows that share a KV head: G * L."""
        return self.group * self.num_rows

    @property
    def padded(self) -> bool:
        return self.leftpad_k is not None or self.seqused_k is not None

    def arguments(self) -> dict[str, Any]:
        """What every kernel takes that multiplies queries and keys."""
        return {
            "q_ptr": self.query,
            "k_ptr": self.key,
            **strides("q", self.query),
            **strides("k", self.key),
            "kv_heads": self.kv_heads,
            "group": self.group,
            "num_rows": self.num_rows,
            "num_prompt": self.num_prompt,
            # The softmax's change of base is in the scale: exp2 is what the hardware has.
            "scale_log2": self.scale * math.log2(math.e),
            "D": self.head_dim,
        }

    def padding(self) -> dict[str, Tensor | None]:
        """What every kernel takes that knows padding."""
        return {"leftpad_ptr": self.leftpad_k, "seqused_ptr": self.seqused_k}


@dataclass(frozen=True)
class PagedProblem:
    """One scoring call over a paged cache; see lookaheadkv_kernels/paged.py for the letters."""

    query: Tensor  # [T, Hq, D]
    key_cache: Tensor  # [num_blocks, page_size, Hkv, D]
    block_table: Tensor  # [R, max_blocks] int32, contiguous
    k_scale: Tensor | None
    plan: Plan
    num_rows: int
    scale: float

    @classmethod
    def of(cls, inputs: PagedInputs, plan: Plan) -> PagedProblem:
        """The problem of checked inputs."""
        query, scale = inputs.query, inputs.scale
        return cls(
            query,
            inputs.key_cache,
            inputs.block_table.contiguous(),
            inputs.k_scale,
            plan,
            inputs.num_rows,
            1.0 / math.sqrt(query.shape[2]) if scale is None else scale,
        )

    @property
    def head_dim(self) -> int:
        return self.query.shape[2]

    @property
    def units(self) -> int:
        """Independent pieces of work: R * Hkv."""
        return self.block_table.shape[0] * self.key_cache.shape[2]

    @property
    def group(self) -> int:
        return self.query.shape[1] // self.key_cache.shape[2]

    @property
    def folded(self) -> int:
        """Rows that share a KV head, at most."""
        return self.group * self.num_rows

    @property
    def quantised(self) -> bool:
        return self.key_cache.dtype in QUANTISED

    def arguments(self) -> dict[str, Any]:
        """What every kernel takes that multiplies queries and keys."""
        cache, scale = self.key_cache, self.k_scale
        steps = [0, 0, 0]  # of one scale for all
        if scale is not None and scale.dim() == 3:
            steps = list(scale.stride())
        elif scale is not None and scale.numel() > 1:
            steps = [0, 0, scale.stride(0)]
        return {
            "q_ptr": self.query,
            "k_ptr": cache.view(torch.uint8) if self.quantised else cache,
            "k_scale_ptr": scale,
            "table_ptr": self.block_table,
            "first_rows_ptr": self.plan.first_rows,
            "rows_ptr": self.plan.rows,
            "prompts_ptr": self.plan.prompts,
            **strides("q", self.query, "th"),
            "stride_block": cache.stride(0),
            "stride_slot": cache.stride(1),
            "stride_kh": cache.stride(2),
            "stride_scale_block": steps[0],
            "stride_scale_slot": steps[1],
            "stride_scale_h": steps[2],
            "kv_heads": cache.shape[2],
            "group": self.group,
            "num_rows": self.num_rows,
            "page_size": cache.shape[1],
            "max_blocks": self.block_table.shape[1],
            "num_blocks": cache.shape[0],
            "scale_log2": self.scale * math.log2(math.e),
            "QUANTISED": QUANTISED.get(cache.dtype, ""),
            "D": self.head_dim,
        }


@dataclass(frozen=True)
class Selection:
    """Options of one select call."""

    budget: int  # 0 is legal here: nothing is kept
    pool_kernel: int = 7
    num_sink: int = 0
    num_recent: int = 0
    append_rows: int = 0  # positions N .. N + append_rows - 1 are put behind the kept ones
    # Of each batch row instead, int32 [B], contiguous; budget and append_rows are their largest.
    counts: Tensor | None = None
    appended: Tensor | None = None
