"""The rooms over a paged cache: each request on its own, its keys looked up page by page."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .attention import compute_dtype
from .scores import column_scores
from .select import select

QUANTISED = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)


class Request(NamedTuple):
    """What the lengths say about one request."""

    rows: int  # L_r, observation rows
    first_row: int  # of them, among the packed queries
    prompt: int  # N_r, prompt keys
    entries: int  # E_r, what can be kept


def requests(
    cu_seqlens_q: Tensor, seq_lens: Tensor, num_rows: int, keep_observation: bool = False
) -> list[Request]:
    """One Request for each of the R rows."""
    starts, lengths = cu_seqlens_q.tolist(), seq_lens.tolist()
    result = []
    for r, length in enumerate(lengths):
        rows = min(num_rows, starts[r + 1] - starts[r])
        entries = length if keep_observation else length - rows
        result.append(Request(rows, starts[r + 1] - rows, length - rows, entries))
    return result


def slots(block_table: Tensor, page_size: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Block and slot of positions of one request, by its row [max_blocks] of the table."""
    positions = positions.long()
    return block_table[positions // page_size].long(), positions % page_size


def dequantised(cache: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[num_blocks, page_size, Hkv, D] of any dtype as ``dtype``, times its scale."""
    numbers = cache.to(dtype)
    if scale is None:
        return numbers
    # One element, [Hkv] or [num_blocks, page_size, Hkv]: all broadcast from the right.
    return numbers * scale.to(dtype)[..., None]


def paged_column_scores(
    query: Tensor,  # [T, Hq, D]
    key_cache: Tensor,  # [num_blocks, page_size, Hkv, D]
    block_table: Tensor,  # [R, max_blocks] int32
    cu_seqlens_q: Tensor,  # [R + 1] int32
    seq_lens: Tensor,  # [R] int32
    num_rows: int,
    max_seq_len: int,
    *,
    lse: Tensor | None = None,  # [T, Hq]
    scale: float | None = None,
    k_scale: Tensor | None = None,
) -> Tensor:
    """Column scores of every request: [R, Hkv, max_seq_len] in the compute dtype, 0 from N_r on."""
    dtype = compute_dtype(query)
    page_size, kv_heads = key_cache.shape[1], key_cache.shape[2]
    numbers = dequantised(key_cache, k_scale, dtype) if _quantised(key_cache) else key_cache
    scores = torch.zeros(len(seq_lens), kv_heads, max_seq_len, dtype=dtype, device=query.device)
    for r, request in enumerate(requests(cu_seqlens_q, seq_lens, num_rows)):
        if request.rows == 0:
            continue
        positions = torch.arange(request.prompt + request.rows, device=query.device)
        key = numbers[slots(block_table[r], page_size, positions)].transpose(0, 1)
        rows = slice(request.first_row, request.first_row + request.rows)
        scores[r, :, : request.prompt] = column_scores(
            query[rows].to(dtype).transpose(0, 1)[None],
            key.to(dtype)[None],
            None if lse is None else lse[rows].T[None],
            scale=scale,
        )[0]
    return scores


def _quantised(cache: Tensor) -> bool:
    return cache.dtype in QUANTISED


def reduce_heads(scores: Tensor, head_reduction: str) -> Tensor:
    """[Hkv, N] -> the scores to rank by: [Hkv, N], or [1, N] where the heads share a choice.

    The mean ranks as the sum does; it is taken in the order of the heads. NaN is no maximum.
    """
    if head_reduction == "none":
        return scores
    if head_reduction == "max":
        best = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(0)
        return best.masked_fill(scores.isnan().all(0), torch.nan)[None]
    total = scores[0].clone()
    for head in scores[1:]:
        total += head
    return total[None]


def paged_select(
    scores: Tensor,  # [R, Hkv, max_seq_len]
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
) -> tuple[Tensor, Tensor]:
    """Kept positions [R, Hkv or 1, max_budget] and lengths after compaction [R], int32."""
    heads = scores.shape[1] if head_reduction == "none" else 1
    indices = torch.full((len(scores), heads, max_budget), -1, dtype=torch.int32)
    kept_lens = torch.zeros(len(scores), dtype=torch.int32)
    for r, request in enumerate(requests(cu_seqlens_q, seq_lens, num_rows, keep_observation)):
        budget = max_budget if budgets is None else int(budgets[r])
        kept_lens[r] = request.entries if budget > 0 else request.prompt + request.rows
        if budget > 0 and request.entries <= budget:
            indices[r, :, : request.entries] = torch.arange(request.entries)
        elif budget > 0 and request.rows > 0:  # the others take no part
            kept_lens[r] = budget
            appended = request.rows if keep_observation else 0
            best = select(
                reduce_heads(scores[r, :, : request.prompt], head_reduction)[None],
                budget - appended,
                pool_kernel=pool_kernel,
                num_sink=num_sink,
                num_recent=num_recent,
            )[0]
            indices[r, :, : budget - appended] = best
            indices[r, :, budget - appended : budget] = request.prompt + torch.arange(appended)
    return indices.to(scores.device), kept_lens.to(scores.device)


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
    lse: Tensor | None = None,  # [T, Hq]
    scale: float | None = None,
    k_scale: Tensor | None = None,
    keep_observation: bool = False,
    **selection: int | str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices, kept lengths and scores; requests that keep everything have scores of 0."""
    scores = paged_column_scores(
        query,
        key_cache,
        block_table,
        cu_seqlens_q,
        seq_lens,
        num_rows,
        max_seq_len,
        lse=lse,
        scale=scale,
        k_scale=k_scale,
    )
    for r, request in enumerate(requests(cu_seqlens_q, seq_lens, num_rows, keep_observation)):
        budget = max_budget if budgets is None else int(budgets[r])
        if request.entries <= budget or budget <= 0:
            scores[r] = 0
    indices, kept_lens = paged_select(
        scores,
        cu_seqlens_q,
        seq_lens,
        num_rows,
        max_budget,
        budgets=budgets,
        keep_observation=keep_observation,
        **selection,  # type: ignore[arg-type]
    )
    return indices, kept_lens, scores
