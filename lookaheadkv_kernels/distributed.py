"""Eviction over several processes.

Tensor parallel: each process has some of the heads and needs nothing from this module. Scores,
pool, Top-K and gather treat one KV head at a time, so every process calls
:func:`~lookaheadkv_kernels.score_and_evict` on its heads.

Context parallel: each process holds a run of the prompt's keys. The rows' softmax runs over all of
them, so log-sum-exps are merged, pools reach over the edges of a run, and the Top-K chooses among
the best candidates of every process. Per layer, the processes send the log-sum-exp, a few edge
scores, ``budget`` candidates per head, and the kept entries: nothing that grows with the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .ops import Evicted, gather_kv, select
from .unmasked import logits_of, unmasked_lse, unmasked_scores


class Run(NamedTuple):
    """The place of a process's keys in the prompt."""

    rank: int
    sizes: tuple[int, ...]  # of every process, in prompt order

    @property
    def start(self) -> int:
        """Position of the first key."""
        return sum(self.sizes[: self.rank])

    @property
    def size(self) -> int:
        """Number of its keys."""
        return self.sizes[self.rank]


def score_and_evict_context_parallel(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, n, D]
    value: Tensor,  # [B, Hkv, n, D]
    own_key: Tensor,  # [B, Hkv, L, D]
    budget: int,
    *,
    shard_sizes: Sequence[int],
    group: dist.ProcessGroup | None = None,
    scale: float | None = None,
    pool_kernel: int = 7,
    num_sink: int = 0,
    num_recent: int = 0,
) -> Evicted:
    """:func:`~lookaheadkv_kernels.score_and_evict` where processes share a prompt's keys.

    Every process of the group calls it with the same arguments, except for its own ``key`` and
    ``value``. The observation rows are not prompt keys: their own keys are dropped.

    Args:
        query: the observation rows after RoPE, the same everywhere.
        key: this process's run of prompt keys; runs follow each other in the order of ranks.
        value: like key.
        own_key: keys of the observation rows, the same everywhere.
        budget: entries to keep per KV head, at least 1.
        shard_sizes: prompt keys of every process (zeros are fine); known to the host, so that
            nothing waits for the device.
        group: the processes; all of them when None.
        scale: of the logits; 1 / sqrt(D) when None.
        pool_kernel: odd window of the max-pool.
        num_sink: first prompt entries that are kept whatever their score.
        num_recent: last prompt entries that are kept whatever their score.

    Returns:
        ``(key, value, indices, scores)``: the kept entries [B, Hkv, K, D] and their positions in
        the whole prompt [B, Hkv, K], the same on every process; scores [B, Hkv, n] of its own run.

    Raises:
        ValueError: ``shard_sizes`` does not fit the group or ``key``; a bad ``budget``,
            ``pool_kernel`` or pin.
        RuntimeError: tensors that the ops refuse.
    """
    run = Run(dist.get_rank(group), tuple(shard_sizes))
    _check(run, dist.get_world_size(group), key, budget, pool_kernel, num_sink, num_recent)
    scale = query.shape[3] ** -0.5 if scale is None else scale
    lse = _merged_lse(query, key, own_key, scale, group)
    scores = unmasked_scores(query, key, scale, lse)
    pooled = _pooled(scores, run, pool_kernel // 2, group)
    positions = torch.arange(run.start, run.start + run.size, device=key.device)
    pinned = (positions < num_sink) | (positions >= sum(run.sizes) - num_recent)
    # Scores are probabilities: nothing else is infinite.
    indices = _best(pooled.masked_fill(pinned, torch.inf), run, budget, group)
    mine = (indices >= run.start) & (indices < run.start + run.size)
    kept = gather_kv(key, value, torch.where(mine, indices - run.start, -1).to(torch.int32))
    kept_key, kept_value = (_from_all(part, group) for part in kept)
    return Evicted(kept_key, kept_value, indices, scores)


def _check(
    run: Run,
    processes: int,
    key: Tensor,
    budget: int,
    pool_kernel: int,
    num_sink: int,
    num_recent: int,
) -> None:
    if len(run.sizes) != processes or min(run.sizes) < 0:
        raise ValueError(
            f"shard_sizes must have one size for each of {processes} processes, got {run.sizes}"
        )
    if key.shape[2] != run.size:
        raise ValueError(
            f"shard_sizes[{run.rank}] is {run.size}, but key has {key.shape[2]} entries"
        )
    if pool_kernel < 1 or pool_kernel % 2 == 0:
        raise ValueError(f"pool_kernel must be odd and at least 1, got {pool_kernel}")
    if budget < 1 or num_sink < 0 or num_recent < 0 or num_sink + num_recent > budget:
        raise ValueError(
            "budget must be at least 1 and hold num_sink + num_recent, got "
            f"budget={budget}, num_sink={num_sink}, num_recent={num_recent}"
        )


def _all(tensor: Tensor, group: dist.ProcessGroup | None) -> list[Tensor]:
    """The tensor of every process, in the order of ranks."""
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, tensor, group=group)
    return parts


def _merged_lse(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, n, D]
    own_key: Tensor,  # [B, Hkv, L, D]
    scale: float,
    group: dist.ProcessGroup | None,
) -> Tensor:
    """Log-sum-exp of the rows over all processes' keys and their own: float32 [B, Hq, L]."""
    rows = query.shape[2]
    hidden = torch.ones(rows, rows, dtype=torch.bool, device=query.device).triu(1)
    own = logits_of(query, own_key, scale).masked_fill(hidden, -torch.inf).logsumexp(dim=-1)
    parts = _all(unmasked_lse(query, key, scale), group)
    return torch.stack([*parts, own.view_as(parts[0])]).logsumexp(dim=0)


def _pooled(scores: Tensor, run: Run, half: int, group: dist.ProcessGroup | None) -> Tensor:
    """Centred max-pool of ``2 * half + 1`` over the whole prompt: this run's part, [B, Hkv, n]."""
    # NaN ranks below every number and wins no window, here as in select.
    scores = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    if half == 0:
        return scores
    # A run may be shorter than half a window, whose neighbour then reaches over it.
    edges = scores.new_empty(2, *scores.shape[:2], half)
    reach = min(half, run.size)
    edges[0, :, :, :reach] = scores[:, :, :reach]
    edges[1, :, :, :reach] = scores[:, :, run.size - reach :]
    around = [
        part[:, :, :, : min(half, size)]
        for part, size in zip(_all(edges, group), run.sizes, strict=True)
    ]
    empty = scores[:, :, :0]
    before = torch.cat([empty, *(part[1] for part in around[: run.rank])], dim=2)[:, :, -half:]
    after = torch.cat([empty, *(part[0] for part in around[run.rank + 1 :])], dim=2)[:, :, :half]
    if run.size == 0:
        return scores
    wide = torch.cat([before, scores, after], dim=2)
    pooled = F.max_pool1d(wide, 2 * half + 1, stride=1, padding=half)
    return pooled[:, :, before.shape[2] : before.shape[2] + run.size]


def _best(pooled: Tensor, run: Run, budget: int, group: dist.ProcessGroup | None) -> Tensor:
    """Positions of the best of all processes' scores: int32 [B, Hkv, K], ascending.

    A process's own best ``budget`` hold all of its entries that can be among the best of all.
    Candidates stand in the order of positions, so ties fall to the smaller one here too.
    """
    counts = [min(budget, size) for size in run.sizes]
    own = select(pooled, budget, pool_kernel=1)
    candidates = pooled.new_zeros(2, *pooled.shape[:2], max(counts))
    filled = candidates[:, :, :, : counts[run.rank]]
    filled[0] = pooled.gather(2, own.long())
    # Positions travel as the bits of floats, beside the scores.
    filled[1] = (own + run.start).view(torch.float32)
    parts = zip(_all(candidates, group), counts, strict=True)
    scores, positions = torch.cat([part[..., :count] for part, count in parts], dim=3)
    chosen = select(scores, budget, pool_kernel=1)
    best: Tensor = positions.view(torch.int32).gather(2, chosen.long())
    return best


def _from_all(part: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Entries [B, Hkv, K, D], of which each process has some, and zeros in place of the others.

    Their bits are summed as integers, which is exact and needs no 16-bit floats of the backend.
    """
    bits = part.contiguous().view(torch.int32)
    dist.all_reduce(bits, group=group)
    return bits.view(part.dtype)
