"""Over-allocated K and V buffers, so that appending a token does not copy the cache."""

from __future__ import annotations

import torch
from torch import Tensor

# Spare entries: a few, and a share of what is stored, so that a growing cache copies a constant
# number of entries per token.
LEAST_SPACE = 32
SPACE_SHARE = 16


class GrowingBuffers:
    """Keys and values of one layer, and space behind them.

    Forks of a cache share their buffers. Slot s is written once, by the append that raises ``used``
    past it; a layer reads only slots below its own length, all of which were written before it had
    that length. Of two forks the first to append takes the space; the other's length is then no
    longer ``used``, and it moves to buffers of its own. Forks that append in several threads at
    once must take turns, as the model does.

    Args:
        key: [B, Hkv, S, D], copied.
        value: like key.
        coming: entries that will be appended next.
    """

    def __init__(self, key: Tensor, value: Tensor, coming: int) -> None:
        self.used = key.shape[2]
        capacity = self.used + coming + LEAST_SPACE + self.used // SPACE_SHARE
        self._key, self._value = (
            tensor.new_empty(*tensor.shape[:2], capacity, tensor.shape[3])
            for tensor in (key, value)
        )
        self._key[:, :, : self.used], self._value[:, :, : self.used] = key, value

    def takes(self, key: Tensor, coming: int) -> bool:
        """Whether ``key`` is all that was ever written here and ``coming`` more entries fit."""
        return (
            key.data_ptr() == self._key.data_ptr()
            and key.shape[:2] == self._key.shape[:2]
            and key.shape[2] == self.used
            and self.used + coming <= self._key.shape[2]
            # A tensor made in inference mode may not be written outside of it.
            and self._key.is_inference() == torch.is_inference_mode_enabled()
        )

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write [B, Hkv, q, D] of each behind the rest; returns all of both."""
        start = self.used
        self.used += key.shape[2]
        self._key[:, :, start : self.used], self._value[:, :, start : self.used] = key, value
        return self._key[:, :, : self.used], self._value[:, :, : self.used]
