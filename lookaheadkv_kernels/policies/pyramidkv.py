"""PyramidKV (Cai et al., 2024): SnapKV's choice, with more room in the lower layers."""

from __future__ import annotations

from typing import ClassVar

from .budget import check_at_least
from .snapkv import SnapKV


class PyramidKV(SnapKV):
    """SnapKV whose budget falls linearly from the first layer to the last.

    With b = budget - window, the last layer gets b // beta beyond its window and the first layer
    2b minus that. A prompt shorter than 2b gives every layer the same.

    As published, the budget falls by a step that is rounded *down*, so that the layers together
    keep more than they should (mean 142.5 at budget 128, window 32, 32 layers). ``exact_total``
    spreads the rounding instead: together they keep what uniform budgets would.

    Args:
        window: observation rows, inside the budget.
        pool_kernel: window of the max-pool.
        beta: the last layer gets one part in ``beta`` of the budget beyond its window.
        exact_total: keep no more than the budget on average; False is as published.
    """

    name: ClassVar[str] = "pyramidkv"

    def __init__(
        self,
        *,
        window: int = 32,
        pool_kernel: int = 7,
        beta: int = 20,
        exact_total: bool = False,
    ) -> None:
        check_at_least("beta", beta, 1)
        super().__init__(window=window, pool_kernel=pool_kernel)
        self.beta = beta
        self.exact_total = exact_total

    def layer_budget(self, budget: int, index: int, num_layers: int, num_prompt: int) -> int:
        """Entries of layer ``index``, its window included."""
        rest = budget - self.window
        if num_layers == 1 or rest <= 0 or num_prompt < max(budget, 2 * rest):
            return budget
        least = rest // self.beta
        most = 2 * rest - least
        if most >= num_prompt - self.window:
            most = num_prompt - self.window
            least = 2 * rest - most
        fall = most - least
        if not self.exact_total:
            return most - index * (fall // (num_layers - 1)) + self.window
        # The l-th layer from the top and the l-th from the bottom share 2b, whatever is rounded.
        pair = min(index, num_layers - 1 - index)
        upper = most - pair * fall // (num_layers - 1)
        return (upper if index == pair else 2 * rest - upper) + self.window
