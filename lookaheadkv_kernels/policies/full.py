"""The full cache: nothing is evicted."""

from __future__ import annotations

from typing import ClassVar

import torch

from .base import Kept, LayerCall, Policy


class FullCache(Policy):
    """Keeps everything, whatever the budget: the upper bound that policies are compared with."""

    name: ClassVar[str] = "full"

    def evict(self, call: LayerCall) -> Kept:
        """All entries."""
        batch, heads, stored, _ = call.key.shape
        everything = torch.arange(stored, dtype=torch.int32, device=call.key.device)
        return Kept(call.key, call.value, everything.expand(batch, heads, stored))

    def layer_budget(self, budget: int, index: int, num_layers: int, num_prompt: int) -> int:
        """All of the prompt."""
        return num_prompt
