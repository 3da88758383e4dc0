"""Which request a row of a batch belongs to: vLLM's attention backends get blocks, but no names.

Without prefix caching a block belongs to one request alone, and the block that a request wrote last
is its own for as long as it lives. So a request is found by the block that it wrote last before
this step, and filed under the one that it writes last in this step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class RequestState:
    """State of one request.

    Attributes:
        queries: per layer, those of the newest ``window`` prompt rows, [rows, Hq, D].
        evicted_blocks: leading blocks that it no longer uses; None while it prefills.
    """

    queries: dict[str, Tensor] = field(default_factory=dict)
    evicted_blocks: int | None = None

    def watch(self, layer: str, query: Tensor, window: int) -> None:
        """Remember the newest ``window`` rows; ``query`` [q, Hq, D] is this step's."""
        missing = window - query.shape[0]
        if missing > 0 and layer in self.queries:
            self.queries[layer] = torch.cat([self.queries[layer][-missing:], query])
        else:  # cloned: the engine uses the buffer again
            self.queries[layer] = query[-window:].clone()


class RequestTable:
    """States of an engine's requests, by the block that each wrote last.

    Args:
        limit: most states to keep; the least recently used goes first. Finished requests are never
            reported, so their states stay until then, or until their block is written again.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._states: dict[int, RequestState] = {}

    def __len__(self) -> int:
        return len(self._states)

    def step(self, num_computed: int, block_before: int, block_after: int) -> RequestState:
        """The state of a row.

        Args:
            num_computed: tokens that were in its cache before this step.
            block_before: block of the newest of these; any number if there are none.
            block_after: block of the newest token of this step.

        Raises:
            RuntimeError: the request was not seen before, though it has tokens in the cache.
        """
        if num_computed == 0:
            state = RequestState()
        else:
            found = self._states.pop(block_before, None)
            if found is None:
                raise RuntimeError(
                    f"lookaheadkv: a request with {num_computed} tokens in the cache was never "
                    "seen: its blocks were filled by somebody else (a prefix cache, a connector)"
                )
            state = found
        self._states.pop(block_after, None)
        self._states[block_after] = state
        while len(self._states) > self._limit:
            del self._states[next(iter(self._states))]
        return state
