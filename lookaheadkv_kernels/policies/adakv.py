"""Ada-KV (Feng et al., 2024): the heads of a layer share one budget, as their scores deserve."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import column_scores, select
from .base import Kept, LayerCall, Policy
from .budget import check_at_least
from .scoring import check_window, everything


class AdaKV(Policy):
    """SnapKV's scores; a KV head gets room by how many of its entries are among the layer's best.

    Of the layer's b * Hkv best entries, b = budget - window, head h has c_h; it keeps its best
    round(c_h * (1 - floor_ratio) + floor(floor_ratio * b)), and the window. The rounding is as
    published: a layer may hold a few entries more or less than b * Hkv. The cache is ragged:
    a head takes memory for what it keeps and no more.

    Args:
        window: observation rows, inside the budget.
        pool_kernel: window of the max-pool.
        floor_ratio: part of the budget that every head has for sure (the paper's alpha).
    """

    name: ClassVar[str] = "adakv"
    ragged: ClassVar[bool] = True

    def __init__(self, *, window: int = 32, pool_kernel: int = 7, floor_ratio: float = 0.2) -> None:
        if not 0.0 <= floor_ratio <= 1.0:
            raise ValueError(f"floor_ratio must be in [0, 1], got {floor_ratio}")
        check_at_least("window", window, 1)
        if pool_kernel < 1 or pool_kernel % 2 == 0:
            raise ValueError(f"pool_kernel must be odd and positive, got {pool_kernel}")
        self.window = window
        self.pool_kernel = pool_kernel
        self.floor_ratio = floor_ratio

    def evict(self, call: LayerCall) -> Kept:
        """Heads that keep less than the longest one have empty slots.

        Raises:
            RuntimeError: the budget cannot hold the window.
        """
        query, lse = call.newest(self.window)
        window, stored = query.shape[2], call.key.shape[2]
        scores = column_scores(query, call.key, lse, scale=call.scale)
        if stored <= call.budget:
            indices = everything(call, stored)
        else:
            check_window(self.name, call.budget, window)
            half = self.pool_kernel // 2
            pooled = F.max_pool1d(scores, self.pool_kernel, 1, half)
            best = self._best(pooled, call.budget - window)
            recent = everything(call, stored)[:, :, stored - window :]
            indices = torch.cat([best, recent], dim=2)
            # Empty slots go to the end of a head.
            indices = indices.gather(2, (indices < 0).to(torch.int8).argsort(dim=2, stable=True))
        return call.keep(indices, scores)

    def _best(self, pooled: Tensor, rest: int) -> Tensor:
        """Each head's best of ``pooled`` [B, Hkv, N], -1 in unused slots: int32 [B, Hkv, K]."""
        batch, heads, num_keys = pooled.shape
        if rest == 0:
            return pooled.new_empty(batch, heads, 0, dtype=torch.int32)
        shared = select(pooled.reshape(batch, 1, heads * num_keys), rest * heads, pool_kernel=1)
        owners = F.one_hot(shared[:, 0].long() // num_keys, heads).sum(dim=1)
        budgets = [
            [
                round(count * (1 - self.floor_ratio) + math.floor(self.floor_ratio * rest))
                for count in row
            ]
            for row in owners.tolist()
        ]
        most = max(max(row) for row in budgets)
        best = pooled.new_full((batch, heads, most), -1, dtype=torch.int32)
        for row in range(batch):
            for head, budget in enumerate(budgets[row]):
                if budget:
                    one = pooled[row : row + 1, head : head + 1]
                    best[row, head, :budget] = select(one, budget, pool_kernel=1)[0, 0]
        return best
