"""Random entries: what any policy has to beat."""

from __future__ import annotations

from typing import ClassVar

import torch

from ..ops import gather_kv, select
from .base import Kept, LayerCall, Policy


class RandomPolicy(Policy):
    """Entries drawn without replacement, uniformly, for every layer and head by itself.

    What is drawn depends on the seed, the layer and the number of tokens alone: neither on the
    device, nor on the row of the batch, nor on earlier calls.

    Args:
        seed: of the draws.
    """

    name: ClassVar[str] = "random"

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def evict(self, call: LayerCall) -> Kept:
        """The best of random scores."""
        batch, heads, stored, _ = call.key.shape
        generator = torch.Generator().manual_seed(self.seed * 65_537 + call.layer)
        scores = torch.rand(heads, stored, generator=generator).to(call.key.device)
        scores = scores.expand(batch, heads, stored)
        indices = select(scores, call.budget, pool_kernel=1)
        return Kept(*gather_kv(call.key, call.value, indices), indices, scores)
