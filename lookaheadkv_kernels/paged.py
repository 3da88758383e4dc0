"""The ops on paged caches: score and select from an engine's pages, then compact them in place.

The cache is read and written where the engine keeps it. Its logical shape is
``[num_blocks, page_size, Hkv, D]`` with any strides (the last dimension contiguous): NHD and HND
storage, and K and V as slices of one tensor that packs both, work without a copy. Any page size
works, 1 too. docs/paged.md maps the ops to an engine.

Letters: R requests, T total packed queries, Hq query heads, Hkv KV heads, D head dimension.
``block_table`` int32 [R, max_blocks]: the entry at position p of request r lies in slot
``p % page_size`` of block ``block_table[r, p // page_size]``. ``seq_lens`` int32 [R]: entries in
the cache, those of the observation rows included. ``cu_seqlens_q`` int32 [R + 1]: request r has
the packed queries ``cu_seqlens_q[r] .. cu_seqlens_q[r + 1] - 1``, which are its last positions;
its *observation rows* are the last ``L_r = min(num_rows, queries of r)`` of them. So the last
chunk of a chunked prefill is scored from the cache like a whole prompt.

For request r, ``N_r = seq_lens[r] - L_r`` are the prompt keys. The *entries* that count are
``E_r = N_r``, or ``seq_lens[r]`` with ``keep_observation``; ``b_r`` is the budget. One of these:

1. ``b_r <= 0``: the request takes no part (it decodes, or its prompt goes on). Its indices are all
   -1, ``kept_lens[r] = seq_lens[r]``, and :func:`compact_kv_cache` does not move its entries.
2. ``E_r <= b_r``: all E_r positions are listed, ``kept_lens[r] = E_r``.
3. ``L_r = 0``: there is no row to score by; as in 1.
4. Else b_r positions are kept, ``kept_lens[r] = b_r``.

A padded row of a captured graph (``seq_lens[r] = 0``, no queries) keeps nothing, whatever its
budget. ``kept_lens`` is thus the length of the cache after compaction, for every row;
:func:`kept_length` computes it on the host. Logical positions stay what they were.

Values inside ``block_table``, ``seq_lens``, ``cu_seqlens_q``, ``budgets``, ``indices``,
``kept_lens`` and ``dst_start`` are checked on the CPU; on a GPU, where looking would wait for the
device, lengths and block ids are clamped into range and a budget that cannot hold what is pinned
counts as 0. No op waits for the device or allocates anything whose size depends on such values.
Errors are as in :mod:`lookaheadkv_kernels.ops`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ._library import OPS

__all__ = [
    "Kept",
    "Selected",
    "compact_kv_cache",
    "kept_length",
    "paged_column_scores",
    "paged_score_and_select",
    "paged_score_and_select_out",
    "paged_select",
]


class Kept(NamedTuple):
    """The positions that each request keeps."""

    indices: Tensor
    """[R, Hkv, max_budget] int32 ([R, 1, max_budget] where heads are reduced): positions in the
    request, ascending; -1 in empty slots, at the end of a row."""
    kept_lens: Tensor
    """[R] int32: the request's length after compaction."""


class Selected(NamedTuple):
    """The positions that each request keeps, and the scores behind the choice."""

    indices: Tensor
    """As in :class:`Kept`."""
    kept_lens: Tensor
    """As in :class:`Kept`."""
    scores: Tensor
    """[R, Hkv, max_seq_len] float32 column scores, before pooling; 0 from N_r on, and for requests
    that keep everything."""


def kept_length(
    seq_len: int, num_queries: int, num_rows: int, budget: int, keep_observation: bool = False
) -> int:
    """``kept_lens`` of one request, computed on the host.

    Args:
        seq_len: entries in the cache, observation rows included.
        num_queries: packed queries of the request.
        num_rows: as passed to the op.
        budget: of this request; 0 or less: it takes no part.
        keep_observation: as passed to the op.

    Returns:
        Entries of the request after compaction.
    """
    rows = min(num_rows, num_queries)
    entries = seq_len if keep_observation else seq_len - rows
    if budget <= 0 or rows == 0:
        return seq_len
    return min(entries, budget)


def paged_column_scores(
    query: Tensor,  # [T, Hq, D]
    key_cache: Tensor,  # [num_blocks, page_size, Hkv, D]
    block_table: Tensor,  # [R, max_blocks] int32
    cu_seqlens_q: Tensor,  # [R + 1] int32
    seq_lens: Tensor,  # [R] int32
    num_rows: int,
    max_seq_len: int,
    *,
    lse: Tensor | None = None,  # [T, Hq] float32
    scale: float | None = None,
    k_scale: Tensor | None = None,  # float32: one element, [Hkv] or [num_blocks, page_size, Hkv]
) -> Tensor:
    """Mean attention probability that each prompt key of each request receives.

    :func:`lookaheadkv_kernels.column_scores` of every request on its own. Row i of the L_r
    observation rows sees keys 0 .. N_r + i.

    Args:
        query: float [T, Hq, D], packed, after RoPE.
        key_cache: [num_blocks, page_size, Hkv, D], after RoPE, in the query's dtype, or quantised:
            float8_e4m3fn, float8_e5m2 or int8, with ``k_scale``.
        block_table: int32 [R, max_blocks].
        cu_seqlens_q: int32 [R + 1], ascending, at most T.
        seq_lens: int32 [R], at most max_seq_len.
        num_rows: observation rows of a request, at least 1; one with fewer queries has fewer.
        max_seq_len: columns of the result, known on the host.
        lse: float32 [T, Hq], the queries' log-sum-exp if the caller's attention gave it.
        scale: of the logits; 1 / sqrt(D) when None. Finite.
        k_scale: factor of the stored keys: one for all ([] or [1]), one per head ([Hkv]), or one
            per entry and head ([num_blocks, page_size, Hkv], any strides). For quantised keys
            only; None means 1.

    Returns:
        float32 [R, Hkv, max_seq_len], contiguous; 0 from N_r on.

    Raises:
        RuntimeError: bad arguments; calling backward.
    """
    batch = (query, key_cache, block_table, cu_seqlens_q, seq_lens, num_rows)
    scores: Tensor = OPS.paged_column_scores(
        *batch, max_seq_len, lse=lse, scale=scale, k_scale=k_scale
    )
    return scores


def paged_select(
    scores: Tensor,  # [R, Hkv, max_seq_len] float32
    cu_seqlens_q: Tensor,  # [R + 1] int32
    seq_lens: Tensor,  # [R] int32
    num_rows: int,
    max_budget: int,
    *,
    budgets: Tensor | None = None,  # [R] int32
    pool_kernel: int = 7,
    num_sink: int = 0,
    num_recent: int = 0,
    keep_observation: bool = False,
    head_reduction: str = "none",
) -> Kept:
    """Max-pool each request's scores, then keep its best positions.

    :func:`lookaheadkv_kernels.select` of every request on its own, with a budget of its own.

    Args:
        scores: float32 [R, Hkv, max_seq_len], any strides; columns from N_r on are not read.
        cu_seqlens_q: int32 [R + 1], as in :func:`paged_column_scores`.
        seq_lens: int32 [R], at most max_seq_len.
        num_rows: as in :func:`paged_column_scores`.
        max_budget: slots of the result, known on the host; must hold what is pinned.
        budgets: int32 [R], at most max_budget each; 0 or less: the request takes no part.
            max_budget for all when None.
        pool_kernel: odd window of the max-pool; 1 switches it off.
        num_sink: first positions that are always kept, inside the budget.
        num_recent: last prompt positions that are always kept, inside the budget.
        keep_observation: keep the L_r observation rows too, inside the budget (SnapKV); False:
            they are lookahead rows and are dropped.
        head_reduction: "none": every KV head keeps its own positions. "mean" or "max": all heads
            keep the same ones, by the mean or the largest of their scores (before pooling); for
            engines that can only move whole slots.

    Returns:
        ``(indices, kept_lens)`` of shapes [R, Hkv, max_budget] ([R, 1, max_budget] where heads are
        reduced) and [R], int32.

    Raises:
        RuntimeError: bad arguments; a budget that cannot hold what is pinned.
    """
    return Kept(
        *OPS.paged_select(
            scores,
            cu_seqlens_q,
            seq_lens,
            num_rows,
            max_budget,
            budgets=budgets,
            pool_kernel=pool_kernel,
            num_sink=num_sink,
            num_recent=num_recent,
            keep_observation=keep_observation,
            head_reduction=head_reduction,
        )
    )


def paged_score_and_select(
    query: Tensor,  # [T, Hq, D]
    key_cache: Tensor,  # [num_blocks, page_size, Hkv, D]
    block_table: Tensor,  # [R, max_blocks] int32
    cu_seqlens_q: Tensor,  # [R + 1] int32
    seq_lens: Tensor,  # [R] int32
    num_rows: int,
    max_seq_len: int,
    max_budget: int,
    *,
    budgets: Tensor | None = None,  # [R] int32
    lse: Tensor | None = None,  # [T, Hq] float32
    scale: float | None = None,
    k_scale: Tensor | None = None,  # float32: one element, [Hkv] or [num_blocks, page_size, Hkv]
    pool_kernel: int = 7,
    num_sink: int = 0,
    num_recent: int = 0,
    keep_observation: bool = False,
    head_reduction: str = "none",
) -> Selected:
    """:func:`paged_column_scores` and :func:`paged_select` in one op, for one layer.

    Requests that keep everything (mid-prefill chunks and decoding rows with a budget of 0, short
    prompts) are not scored: their scores are 0.

    Args:
        query: float [T, Hq, D], packed, after RoPE.
        key_cache: [num_blocks, page_size, Hkv, D], as in :func:`paged_column_scores`.
        block_table: int32 [R, max_blocks].
        cu_seqlens_q: int32 [R + 1].
        seq_lens: int32 [R].
        num_rows: observation rows of a request, at least 1.
        max_seq_len: columns of the scores, known on the host.
        max_budget: slots of the indices, known on the host; must hold what is pinned.
        budgets: int32 [R], as in :func:`paged_select`.
        lse: float32 [T, Hq], the queries' log-sum-exp if the caller's attention gave it.
        scale: of the logits; 1 / sqrt(D) when None. Finite.
        k_scale: of quantised keys, as in :func:`paged_column_scores`.
        pool_kernel: odd window of the max-pool; 1 switches it off.
        num_sink: first positions that are always kept, inside the budget.
        num_recent: last prompt positions that are always kept, inside the budget.
        keep_observation: keep the observation rows too, inside the budget.
        head_reduction: "none", "mean" or "max", as in :func:`paged_select`.

    Returns:
        ``(indices, kept_lens, scores)``.

    Raises:
        RuntimeError: bad arguments; a budget that cannot hold what is pinned; calling backward.
    """
    batch = (query, key_cache, block_table, cu_seqlens_q, seq_lens, num_rows)
    return Selected(
        *OPS.paged_score_and_select(
            *batch,
            max_seq_len,
            max_budget,
            budgets=budgets,
            lse=lse,
            scale=scale,
            k_scale=k_scale,
            pool_kernel=pool_kernel,
            num_sink=num_sink,
            num_recent=num_recent,
            keep_observation=keep_observation,
            head_reduction=head_reduction,
        )
    )


def paged_score_and_select_out(
    query: Tensor,  # [T, Hq, D]
    key_cache: Tensor,  # [num_blocks, page_size, Hkv, D]
    block_table: Tensor,  # [R, max_blocks] int32
    cu_seqlens_q: Tensor,  # [R + 1] int32
    seq_lens: Tensor,  # [R] int32
    num_rows: int,
    max_budget: int,
    *,
    indices: Tensor,  # [R, Hkv or 1, max_budget] int32
    kept_lens: Tensor,  # [R] int32
    scores: Tensor,  # [R, Hkv, max_seq_len] float32
    budgets: Tensor | None = None,  # [R] int32
    lse: Tensor | None = None,  # [T, Hq] float32
    scale: float | None = None,
    k_scale: Tensor | None = None,  # float32: one element, [Hkv] or [num_blocks, page_size, Hkv]
    pool_kernel: int = 7,
    num_sink: int = 0,
    num_recent: int = 0,
    keep_observation: bool = False,
    head_reduction: str = "none",
) -> None:
    """:func:`paged_score_and_select`, written to caller-provided tensors, each contiguous.

    For persistent buffers: ``indices`` and ``kept_lens`` can be a layer's slices of what
    :func:`compact_kv_cache` takes for all layers, ``scores`` a workspace that all layers share.

    Args:
        query: float [T, Hq, D], packed, after RoPE.
        key_cache: [num_blocks, page_size, Hkv, D], as in :func:`paged_column_scores`.
        block_table: int32 [R, max_blocks].
        cu_seqlens_q: int32 [R + 1].
        seq_lens: int32 [R].
        num_rows: observation rows of a request, at least 1.
        max_budget: slots of the indices; must hold what is pinned.
        indices: int32 [R, Hkv, max_budget] ([R, 1, max_budget] where heads are reduced), written.
        kept_lens: int32 [R], written.
        scores: float32 [R, Hkv, max_seq_len], written; its last size is the op's max_seq_len.
        budgets: int32 [R], as in :func:`paged_select`.
        lse: float32 [T, Hq], the queries' log-sum-exp if the caller's attention gave it.
        scale: of the logits; 1 / sqrt(D) when None. Finite.
        k_scale: of quantised keys, as in :func:`paged_column_scores`.
        pool_kernel: odd window of the max-pool; 1 switches it off.
        num_sink: first positions that are always kept, inside the budget.
        num_recent: last prompt positions that are always kept, inside the budget.
        keep_observation: keep the observation rows too, inside the budget.
        head_reduction: "none", "mean" or "max", as in :func:`paged_select`.

    Returns:
        Nothing.

    Raises:
        RuntimeError: bad arguments; a budget that cannot hold what is pinned.
    """
    batch = (query, key_cache, block_table, cu_seqlens_q, seq_lens, num_rows)
    OPS.paged_score_and_select_out(
        *batch,
        max_budget,
        indices=indices,
        kept_lens=kept_lens,
        scores=scores,
        budgets=budgets,
        lse=lse,
        scale=scale,
        k_scale=k_scale,
        pool_kernel=pool_kernel,
        num_sink=num_sink,
        num_recent=num_recent,
        keep_observation=keep_observation,
        head_reduction=head_reduction,
    )


def compact_kv_cache(
    caches: Sequence[Tensor],  # num_layers * P, each [num_blocks, page_size, Hkv, *]
    indices: Tensor,  # [num_layers, R, Hkv or 1, K] int32
    kept_lens: Tensor,  # [num_layers, R] int32
    src_block_table: Tensor,  # [R, max_blocks] int32
    dst_block_table: Tensor | None = None,  # [R, max_dst_blocks] int32
    *,
    dst_start: Tensor | None = None,  # [num_layers, R] int32
) -> None:
    """Move the kept entries of every layer and head together, in place, without scratch memory.

    Entry j of a head, ``indices[layer, r, h, j]`` for j < kept_lens[layer, r], goes from there (by
    ``src_block_table``) to position ``dst_start[layer, r] + j`` (by ``dst_block_table``), byte for
    byte: dtypes do not matter, and scales move like payload. No other byte is written.

    No entry of a request is overwritten before it is read, for any ``dst_start``; docs/paged.md
    shows why. Between requests nothing is ordered: a block that the call writes must be written by
    one request alone, and be read only by the same request, at the same place in both of its
    tables. So a shared prefix is read by all and written by none: give the request blocks of its
    own in ``dst_block_table`` (copy on evict). On the CPU a violation is an error.

    Args:
        caches: for each layer its P tensors, in order: K and V, or one that packs both, with the
            scales of quantised entries if there are any. Each is [num_blocks, page_size, Hkv, D],
            any strides with the last dimension contiguous, or [num_blocks, page_size, Hkv], any
            strides; dtype and D are free, the other sizes are shared by all.
        indices: int32 [num_layers, R, Hkv, K], ascending in each row, -1 in the slots at the end;
            [num_layers, R, 1, K]: all heads of a slot move together.
        kept_lens: int32 [num_layers, R]: entries of each row that move; a row whose indices are all
            -1 is left alone, whatever its length.
        src_block_table: int32 [R, max_blocks], where the entries are.
        dst_block_table: int32 [R, max_dst_blocks], where they go; src_block_table when None.
        dst_start: int32 [num_layers, R], position of the first kept entry; 0 when None (aligned to
            the head). ``length - kept_lens`` aligns the kept entries to the tail, so that the
            blocks in front become free.

    Returns:
        Nothing.

    Raises:
        RuntimeError: bad arguments; on the CPU indices that do not ascend, block ids out of range,
            and a block that two requests write or one writes and another reads.
    """
    OPS.compact_kv_cache(
        caches, indices, kept_lens, src_block_table, dst_block_table, dst_start=dst_start
    )
