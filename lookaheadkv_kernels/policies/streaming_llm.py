"""StreamingLLM (Xiao et al., 2023): the first few entries and the newest, whatever the text."""

from __future__ import annotations

from typing import ClassVar

import torch

from ..ops import select
from .base import Kept, LayerCall, Policy
from .budget import check_at_least
from .scoring import check_pinned


class StreamingLLM(Policy):
    """``num_sink`` first and ``budget - num_sink`` newest entries, at their original positions.

    Args:
        num_sink: attention sinks, inside the budget.
    """

    name: ClassVar[str] = "streaming_llm"
    handles_padding: ClassVar[bool] = True

    def __init__(self, *, num_sink: int = 4) -> None:
        check_at_least("num_sink", num_sink, 0)
        self.num_sink = num_sink

    def evict(self, call: LayerCall) -> Kept:
        """Everything that stays is pinned: the scores decide nothing.

        Raises:
            RuntimeError: the budget cannot hold the sinks.
        """
        if call.num_prompt > call.budget:
            check_pinned(self.name, call.budget, num_sink=self.num_sink)
        indices = select(
            call.key.new_zeros((), dtype=torch.float32).expand(call.key.shape[:3]),
            call.budget,
            pool_kernel=1,
            num_sink=min(self.num_sink, call.key.shape[2]),
            num_recent=max(0, call.budget - self.num_sink),
            leftpad_k=call.leftpad_k,
        )
        return call.keep(indices)
