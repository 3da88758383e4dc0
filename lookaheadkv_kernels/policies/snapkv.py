"""SnapKV (Li et al., 2024): the end of the prompt says what the answer will need."""

from __future__ import annotations

from typing import ClassVar

from .base import Kept, LayerCall, Policy
from .budget import check_at_least
from .scoring import check_window


class SnapKV(Policy):
    """Mean attention of the last ``window`` prompt rows, max-pooled, Top-K; the window stays.

    Args:
        window: observation rows, inside the budget.
        pool_kernel: window of the max-pool.
    """

    name: ClassVar[str] = "snapkv"

    def __init__(self, *, window: int = 32, pool_kernel: int = 7) -> None:
        check_at_least("window", window, 1)
        self.window = window
        self.pool_kernel = pool_kernel

    def evict(self, call: LayerCall) -> Kept:
        """Score with the newest rows; a prompt that fits the budget stays whole.

        Raises:
            RuntimeError: the budget cannot hold the window.
        """
        if call.num_prompt > call.budget:
            check_window(self.name, call.budget, min(self.window, call.query.shape[2]))
        return call.keep_best(self.window, pool_kernel=self.pool_kernel, keep_observation=True)
