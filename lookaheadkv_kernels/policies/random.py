"""Random entries: what any policy has to beat."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .base import LayerCall
from .scoring import ScorePolicy


class RandomPolicy(ScorePolicy):
    """Entries drawn without replacement, uniformly, independently for every layer and head.

    The draw depends on the seed, the layer and the number of tokens alone: neither on the device,
    nor on the row of the batch, nor on earlier calls.

    Args:
        seed: of the draws.
    """

    name: ClassVar[str] = "random"

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def score(self, call: LayerCall) -> Tensor:
        """Random scores, the same for every row."""
        batch, heads, stored, _ = call.key.shape
        generator = torch.Generator(device="cpu").manual_seed(self.seed * 65_537 + call.layer)
        scores = torch.rand(
            heads, stored, generator=generator, dtype=torch.float32, device="cpu"
        ).to(call.key.device)
        return scores.expand(batch, heads, stored)
