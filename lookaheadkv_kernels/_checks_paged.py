"""Argument checks of the ops on paged caches, from shapes and dtypes alone.

As in _checks.py: the same checks, in the same order and words, as csrc/core/validate_paged.h.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._checks import (
    MAX_POSITIONS,
    Checks,
    Options,
    Size,
    _differ,
    _known,
    _shape,
    _typed,
    dtype_name,
)

QUANTISED_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
HEAD_REDUCTIONS = ("none", "mean", "max")


class PagedInputs(NamedTuple):
    """What the ops that score a paged cache take; fields as in csrc/core/paged.h."""

    query: Tensor
    """[T, Hq, D]."""
    key_cache: Tensor
    """[num_blocks, page_size, Hkv, D]."""
    block_table: Tensor
    """[R, max_blocks] int32."""
    cu_seqlens_q: Tensor
    """[R + 1] int32."""
    seq_lens: Tensor
    """[R] int32."""
    num_rows: int
    max_seq_len: Size
    lse: Tensor | None
    """[T, Hq] float32."""
    scale: float | None
    k_scale: Tensor | None
    """float32: one element, [Hkv] or [num_blocks, page_size, Hkv]."""

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> PagedInputs:
        """The fields by name, out of all arguments of an op."""
        return cls._make(arguments[name] for name in cls._fields)

    @property
    def num_requests(self) -> Size:
        return self.block_table.shape[0]

    @property
    def kv_heads(self) -> Size:
        return self.key_cache.shape[2]


class PagedSelection(NamedTuple):
    """What the ops that select from a paged cache take."""

    num_rows: int
    max_budget: int
    budgets: Tensor | None
    """[R] int32."""
    pool_kernel: int
    num_sink: int
    num_recent: int
    keep_observation: bool
    head_reduction: str

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> PagedSelection:
        """The fields by name, out of all arguments of an op."""
        return cls._make(arguments[name] for name in cls._fields)

    def heads(self, kv_heads: Size) -> Size:
        """Heads of the indices."""
        return kv_heads if self.head_reduction == "none" else 1


class Compaction(NamedTuple):
    """What compact_kv_cache takes."""

    caches: Sequence[Tensor]
    """num_layers * P, each [num_blocks, page_size, Hkv, *]."""
    indices: Tensor
    """[num_layers, R, Hkv or 1, K] int32."""
    kept_lens: Tensor
    """[num_layers, R] int32."""
    src_block_table: Tensor
    """[R, max_blocks] int32."""
    dst_block_table: Tensor | None
    """[R, max_dst_blocks] int32."""
    dst_start: Tensor | None
    """[num_layers, R] int32."""


class PagedChecks(Checks):
    """The checks of one op on a paged cache."""

    def paged_scoring(self, inputs: PagedInputs) -> None:
        """What every op that scores takes."""
        query, key_cache = inputs.query, inputs.key_cache
        self._cache_inputs(query, key_cache)
        self._block_table("block_table", inputs.block_table, None, "query", query)
        requests = inputs.num_requests
        self._batch(inputs.cu_seqlens_q, inputs.seq_lens, inputs.num_rows, requests, "query", query)
        self._max_seq_len(inputs.max_seq_len)
        self.float_tensor("lse", inputs.lse, query.shape[:2], query)
        self.scale(inputs.scale)
        self._k_scale(inputs.k_scale, key_cache)

    def paged_scores(
        self, scores: Tensor, cu_seqlens_q: Tensor, seq_lens: Tensor, num_rows: int
    ) -> None:
        """Scores [R, Hkv, max_seq_len] float32, any strides, and the lengths."""
        if scores.dtype != torch.float32 or scores.dim() != 3:
            self.fail(
                "scores must be a float32 tensor of shape [R, Hkv, max_seq_len], "
                f"got {_typed(scores)}"
            )
        if _known(scores.shape[1] < 1):
            self.fail(f"scores must have at least one head, got Hkv={scores.shape[1]}")
        self._batch(cu_seqlens_q, seq_lens, num_rows, scores.shape[0], "scores", scores)
        self._max_seq_len(scores.shape[2])

    def selection(
        self, selection: PagedSelection, num_requests: Size, owner: str, like: Tensor
    ) -> None:
        """What every op that selects takes."""
        s = selection
        options = Options(s.max_budget, s.pool_kernel, s.num_sink, s.num_recent, s.keep_observation)
        self.budget(options, s.num_rows, "max_budget")
        if s.max_budget > MAX_POSITIONS:
            self.fail(f"max_budget must be at most {MAX_POSITIONS}, got {s.max_budget}")
        if s.head_reduction not in HEAD_REDUCTIONS:
            self.fail(f'head_reduction must be "none", "mean" or "max", got "{s.head_reduction}"')
        if s.budgets is not None:
            self._int32("budgets", s.budgets, [num_requests], owner, like)

    def outputs(
        self,
        inputs: PagedInputs,
        selection: PagedSelection,
        indices: Tensor,
        kept_lens: Tensor,
        scores: Tensor,
    ) -> None:
        """The tensors that paged_score_and_select_out writes."""
        query, requests, kv_heads = inputs.query, inputs.num_requests, inputs.kv_heads
        shape = [requests, selection.heads(kv_heads), selection.max_budget]
        self._int32("indices", indices, shape, "query", query)
        self._int32("kept_lens", kept_lens, [requests], "query", query)
        self.float_tensor("scores", scores, [requests, kv_heads, inputs.max_seq_len], query)
        outputs = {"indices": indices, "kept_lens": kept_lens, "scores": scores}
        for name, tensor in outputs.items():
            if not tensor.is_contiguous():
                self.fail(f"{name} must be contiguous")

    def compaction(self, compaction: Compaction) -> None:
        """Inputs of compact_kv_cache."""
        caches, indices, kept_lens, src_block_table, dst_block_table, dst_start = compaction
        if not caches:
            self.fail("caches must hold at least one tensor")
        first = caches[0]
        for i, cache in enumerate(caches):
            self._compacted_cache(f"caches[{i}]", cache, first)
        kv_heads = first.shape[2]
        if (
            indices.dtype != torch.int32
            or indices.dim() != 4
            or (_known(indices.shape[2] != kv_heads) and _known(indices.shape[2] != 1))
        ):
            self.fail(
                "indices must be an int32 tensor of shape [num_layers, R, Hkv or 1, K] = "
                f"[*, *, {kv_heads} or 1, *], got {_typed(indices)}"
            )
        self._same_device("indices", indices, "caches[0]", first.device)
        layers, requests = indices.shape[:2]
        if _known(layers < 1) or _known(len(caches) % layers != 0):
            self.fail(
                "caches must hold the same number of tensors for each of "
                f"num_layers={layers} layers, got {len(caches)}"
            )
        self._int32("kept_lens", kept_lens, [layers, requests], "caches[0]", first)
        self._block_table("src_block_table", src_block_table, requests, "caches[0]", first)
        if dst_block_table is not None:
            self._block_table("dst_block_table", dst_block_table, requests, "caches[0]", first)
        if dst_start is not None:
            self._int32("dst_start", dst_start, [layers, requests], "caches[0]", first)

    def _cache_inputs(self, query: Tensor, key_cache: Tensor) -> None:
        if query.dim() != 3:
            self.fail(f"query must have 3 dimensions [T, Hq, D], got shape {_shape(query.shape)}")
        if key_cache.dim() != 4:
            self.fail(
                "key_cache must have 4 dimensions [num_blocks, page_size, Hkv, D], "
                f"got shape {_shape(key_cache.shape)}"
            )
        self._float_dtype("query", query)
        if key_cache.dtype not in (query.dtype, *QUANTISED_DTYPES):
            self.fail(
                f"key_cache must have query's dtype {dtype_name(query.dtype)} or be "
                f"float8_e4m3fn, float8_e5m2 or int8, got {dtype_name(key_cache.dtype)}"
            )
        self._same_device("key_cache", key_cache, "query", query.device)
        heads, head_dim = query.shape[1:]
        page_size, kv_heads = key_cache.shape[1:3]
        if _known(key_cache.shape[3] != head_dim):
            self.fail(f"key_cache must have query's head_dim {head_dim}, got {key_cache.shape[3]}")
        self._head_dim(head_dim)
        if _known(page_size < 1):
            self.fail(f"key_cache must have a page_size of at least 1, got {page_size}")
        if _known(kv_heads < 1):
            self.fail(f"key_cache must have at least one head, got Hkv={kv_heads}")
        self._head_groups(heads, kv_heads)
        self._last_dim_contiguous({"query": query, "key_cache": key_cache})

    def _compacted_cache(self, name: str, cache: Tensor, first: Tensor) -> None:
        if cache.dim() not in (3, 4):
            self.fail(
                f"{name} must have the dimensions [num_blocks, page_size, Hkv, D] or "
                f"[num_blocks, page_size, Hkv], got shape {_shape(cache.shape)}"
            )
        if _known(cache.shape[1] < 1) or _known(cache.shape[2] < 1):
            self.fail(
                f"{name} must have at least one slot a page and one head, "
                f"got shape {_shape(cache.shape)}"
            )
        if _differ(cache.shape[:3], first.shape[:3]):
            self.fail(
                f"{name} must have caches[0]'s sizes {_shape(first.shape[:3])}, "
                f"got shape {_shape(cache.shape)}"
            )
        self._same_device(name, cache, "caches[0]", first.device)
        for size, stride in zip(cache.shape[:3], cache.stride()[:3], strict=True):
            if _known(size > 1) and _known(stride == 0):
                self.fail(f"{name} must not be expanded: its entries would share memory")
        if cache.dim() == 4:
            self._last_dim_contiguous({name: cache})

    def _batch(
        self,
        cu_seqlens_q: Tensor,
        seq_lens: Tensor,
        num_rows: int,
        num_requests: Size,
        owner: str,
        like: Tensor,
    ) -> None:
        self._int32("cu_seqlens_q", cu_seqlens_q, [num_requests + 1], owner, like)
        self._int32("seq_lens", seq_lens, [num_requests], owner, like)
        if num_rows < 1:
            self.fail(f"num_rows must be at least 1, got {num_rows}")

    def _block_table(
        self, name: str, table: Tensor, num_requests: Size | None, owner: str, like: Tensor
    ) -> None:
        rows = "R" if num_requests is None else str(num_requests)
        if (
            table.dtype != torch.int32
            or table.dim() != 2
            or (num_requests is not None and _known(table.shape[0] != num_requests))
        ):
            self.fail(
                f"{name} must be an int32 tensor of shape [{rows}, max_blocks], got {_typed(table)}"
            )
        self._same_device(name, table, owner, like.device)

    def _int32(
        self, name: str, tensor: Tensor, shape: Sequence[Size], owner: str, like: Tensor
    ) -> None:
        if tensor.dtype != torch.int32 or _differ(tensor.shape, shape):
            self.fail(
                f"{name} must be an int32 tensor of shape {_shape(shape)}, got {_typed(tensor)}"
            )
        self._same_device(name, tensor, owner, like.device)

    def _max_seq_len(self, max_seq_len: Size) -> None:
        if _known(max_seq_len < 0) or _known(max_seq_len > MAX_POSITIONS):
            self.fail(f"max_seq_len must be in 0..{MAX_POSITIONS}, got {max_seq_len}")

    def _k_scale(self, k_scale: Tensor | None, key_cache: Tensor) -> None:
        if k_scale is None:
            return
        if key_cache.dtype not in QUANTISED_DTYPES:
            self.fail(
                "k_scale is for a key_cache of float8_e4m3fn, float8_e5m2 or int8, "
                f"got {dtype_name(key_cache.dtype)}"
            )
        shape = k_scale.shape
        one = len(shape) <= 1 and not _differ(shape, [1] * len(shape))
        if k_scale.dtype != torch.float32 or not (
            one
            or not _differ(shape, key_cache.shape[2:3])
            or not _differ(shape, key_cache.shape[:3])
        ):
            blocks, page_size, kv_heads = key_cache.shape[:3]
            self.fail(
                f"k_scale must be a float32 tensor of shape [], [1], [{kv_heads}] or "
                f"[{blocks}, {page_size}, {kv_heads}], got {_typed(k_scale)}"
            )
        self._same_device("k_scale", k_scale, "query", key_cache.device)
