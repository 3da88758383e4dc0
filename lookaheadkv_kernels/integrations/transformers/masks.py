"""Which keys a token may see."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class StepMask:
    """What one forward pass may see: the base's mask, made when asked for, and the padding."""

    def __init__(self, make: Callable[[], Any], padding: Tensor | None, num_new: int) -> None:
        self._make = make
        self._padding = padding  # [B, all tokens seen] bool
        self._num_new = num_new

    @cached_property
    def base(self) -> Any:
        """The mask the base implementation wants."""
        return self._make()

    @cached_property
    def padding(self) -> Tensor | None:
        """Which of this pass's tokens are real, bool [B, q]; None when all are.

        A single token is always real: it is one that the model has just made.
        """
        if self._padding is None or self._num_new == 1:
            return None
        padding = self._padding[:, -self._num_new :].bool()
        return None if bool(padding.all()) else padding


def bottom_right_mask(
    num_rows: int, num_keys: int, valid: Tensor | None, device: torch.device
) -> Tensor | None:
    """Which keys the last ``num_rows`` tokens see: bool [1 or B, 1, q, S]; None for all of them.

    Causal among themselves. A padding row sees itself, lest its softmax be empty; nothing that is
    real ever sees a padding key.
    """
    if num_rows == 1 and valid is None:
        return None
    causal = torch.ones(num_rows, num_keys, dtype=torch.bool, device=device)
    causal = causal.tril(num_keys - num_rows)
    if valid is None:
        return causal[None, None]
    own = torch.zeros_like(causal)
    own.diagonal(num_keys - num_rows).fill_(True)
    return (causal & valid[:, None, None, :].to(device)) | own
