"""Eviction where a prompt's cache lies on several ranks.

**Tensor parallelism** shards heads. A head's scores and choice need no other head: every rank calls
:func:`lookaheadkv_kernels.score_and_evict` on its own, and there is nothing to exchange.

**Context parallelism** shards the prompt. The softmax then runs over keys of all ranks, the pool's
window crosses their borders, and the budget is one for all: :func:`score_and_select_sharded`. Ranks
exchange one log-sum-exp a row, a few scores at each border, and ``budget`` candidates a head, all
by ``torch.distributed.all_gather``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .ops import select
from .policies.scoring import unmasked_lse, unmasked_scores


class Sharded(NamedTuple):
    """What stays of a prompt, seen from one rank."""

    positions: Tensor
    """[B, Hkv, K] int32, in the whole prompt, ascending; the same on every rank."""
    indices: Tensor
    """[B, Hkv, K] int32, those on this rank, in its shard, ascending; -1 in the slots at the end.
    :func:`lookaheadkv_kernels.gather_kv` takes them."""
    scores: Tensor
    """[B, Hkv, n] float32 column scores of this rank's keys, before pooling."""


def score_and_select_sharded(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, n, D]
    rows_key: Tensor,  # [B, Hkv, L, D]
    budget: int,
    shard_lengths: Sequence[int],
    *,
    group: dist.ProcessGroup | None = None,
    scale: float | None = None,
    pool_kernel: int = 7,
) -> Sharded:
    """Choose what stays of a prompt whose keys lie on the ranks of ``group``, in their order.

    The same choice as that of :func:`lookaheadkv_kernels.score_and_evict` on one rank, up to the
    rounding of scores; exactly :func:`lookaheadkv_kernels.select` of the ranks' own scores.

    Args:
        query: [B, Hq, L, D], the lookahead rows after RoPE; the same on every rank.
        key: [B, Hkv, n, D], this rank's prompt keys; n may be 0.
        rows_key: [B, Hkv, L, D], the lookahead rows' own keys; the same on every rank.
        budget: entries to keep per head on all ranks together, at least 1.
        shard_lengths: n of every rank, known on the host.
        group: the ranks; all when None.
        scale: of the logits; 1 / sqrt(D) when None.
        pool_kernel: odd window of the max-pool.

    Returns:
        ``(positions, indices, scores)``, with K = min(budget, sum of shard_lengths).

    Raises:
        ValueError: a budget, pool or shard lengths that make no sense.
    """
    rank = dist.get_rank(group)
    _check(key, budget, shard_lengths, dist.get_world_size(group), rank, pool_kernel)
    if scale is None:
        scale = 1.0 / math.sqrt(query.shape[-1])
    lse = merged_lse(query, key, rows_key, scale, group)
    scores = unmasked_scores(query, key, scale, lse)
    pooled = _pooled(scores, shard_lengths, rank, pool_kernel, group)
    positions = _best(pooled, budget, shard_lengths, rank, group)
    return Sharded(positions, _own(positions, shard_lengths, rank), scores)


def merged_lse(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, n, D]
    rows_key: Tensor,  # [B, Hkv, L, D]
    scale: float,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """The rows' log-sum-exp over all ranks' prompt keys and, causally, their own: [B, Hq, L]."""
    heads, rows = query.shape[1:3]
    parts = _gathered(unmasked_lse(query, key, scale), group)
    repeats = heads // rows_key.shape[1]
    own = query.float() @ rows_key.float().repeat_interleave(repeats, dim=1).transpose(-1, -2)
    causal = torch.ones(rows, rows, dtype=torch.bool, device=query.device).tril()
    parts.append((own * scale).masked_fill(~causal, -torch.inf).logsumexp(dim=-1))
    return torch.stack(parts).logsumexp(dim=0)


def _check(
    key: Tensor, budget: int, lengths: Sequence[int], ranks: int, rank: int, pool_kernel: int
) -> None:
    if budget < 1:
        raise ValueError(f"budget must be >= 1, got {budget}")
    if pool_kernel < 1 or pool_kernel % 2 == 0:
        raise ValueError(f"pool_kernel must be odd and >= 1, got {pool_kernel}")
    if len(lengths) != ranks:
        raise ValueError(f"shard_lengths must have one length a rank ({ranks}), got {len(lengths)}")
    if lengths[rank] != key.shape[2]:
        raise ValueError(
            f"shard_lengths says {lengths[rank]} keys on rank {rank}, key has {key.shape[2]}"
        )


def _gathered(tensor: Tensor, group: dist.ProcessGroup | None) -> list[Tensor]:
    """Tensors of one shape from all ranks."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return parts


def _pooled(
    scores: Tensor,  # [B, Hkv, n]
    lengths: Sequence[int],
    rank: int,
    pool_kernel: int,
    group: dist.ProcessGroup | None,
) -> Tensor:
    """Max-pool over the whole prompt, of this rank's positions; a window of NaN alone is -inf."""
    reach = pool_kernel // 2
    numbers = scores.masked_fill(scores.isnan(), -torch.inf)
    if reach == 0:
        return numbers
    # Of each rank the first and last `reach` scores; -inf, which wins no window, where it has none.
    own, missing = numbers.shape[2], max(0, reach - numbers.shape[2])
    head = F.pad(numbers[:, :, :reach], (0, missing), value=-torch.inf)
    tail = F.pad(numbers[:, :, max(0, own - reach) :], (missing, 0), value=-torch.inf)
    edges = _gathered(torch.stack([head, tail]), group)
    nothing = numbers[:, :, :0]
    before, after = [nothing], [nothing]
    for other, length in enumerate(lengths):
        if other < rank:
            before.append(edges[other][1][:, :, reach - min(length, reach) :])
        elif other > rank:
            after.append(edges[other][0][:, :, : min(length, reach)])
    left = torch.cat(before, dim=2)[:, :, -reach:]
    right = torch.cat(after, dim=2)[:, :, :reach]
    wide = F.pad(
        torch.cat([left, numbers, right], dim=2),
        (reach - left.shape[2], reach - right.shape[2]),
        value=-torch.inf,
    )
    return F.max_pool1d(wide, pool_kernel, stride=1) if own > 0 else nothing


def _best(
    pooled: Tensor,  # [B, Hkv, n]
    budget: int,
    lengths: Sequence[int],
    rank: int,
    group: dist.ProcessGroup | None,
) -> Tensor:
    """Positions of the best of all ranks: int32 [B, Hkv, min(budget, N)], ascending.

    Each rank's best ``budget`` hold all of its that are among the best ``budget`` of all. They are
    joined in the order of ranks, so that among equals the earlier position comes first again.
    """
    slots = min(budget, max(lengths))
    local = select(pooled, budget, pool_kernel=1)
    values = pooled.gather(2, local.long())
    missing = slots - local.shape[2]
    # NaN ranks below every number: an empty slot is never taken.
    values = F.pad(values, (0, missing), value=torch.nan)
    places = F.pad(local + sum(lengths[:rank]), (0, missing), value=-1)
    candidates = torch.cat(_gathered(values, group), dim=2)
    where = torch.cat(_gathered(places, group), dim=2)
    best = select(candidates, min(budget, sum(lengths)), pool_kernel=1)
    return where.gather(2, best.long())


def _own(positions: Tensor, lengths: Sequence[int], rank: int) -> Tensor:
    """Those of the positions that lie on this rank, in its shard, -1 behind them."""
    start = sum(lengths[:rank])
    inside = (positions >= start) & (positions < start + lengths[rank])
    local = torch.where(inside, positions - start, -1)
    order = (~inside).to(torch.int8).argsort(dim=2, stable=True)
    return local.gather(2, order)
