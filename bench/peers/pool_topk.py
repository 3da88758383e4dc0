"""Selection and gathering in a few lines of PyTorch, as every published eviction code has them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pool_topk(
    scores: Tensor, budget: int, pool_kernel: int = 7, *, best_first: bool = True
) -> Tensor:
    """Positions int64 [B, Hkv, budget] of the best max-pooled scores [B, Hkv, N].

    ``best_first=False`` leaves their order open, which spares torch a sort.
    """
    pooled = F.max_pool1d(scores, pool_kernel, stride=1, padding=pool_kernel // 2)
    return pooled.topk(min(budget, scores.shape[-1]), dim=-1, sorted=best_first).indices


def pool_topk_sorted(scores: Tensor, budget: int, pool_kernel: int = 7) -> Tensor:
    """The same in ascending order, as `lookaheadkv_kernels.select` returns them."""
    return pool_topk(scores, budget, pool_kernel, best_first=False).sort(dim=-1).values


def torch_gather(key: Tensor, value: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Entries [B, Hkv, K, D] at int64 indices [B, Hkv, K] of key and value [B, Hkv, S, D]."""
    rows = indices[..., None].expand(-1, -1, -1, key.shape[-1])
    return key.gather(2, rows), value.gather(2, rows)
