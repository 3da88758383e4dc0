"""Which keys a token may see."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


class StepMask:
    """Takes the place of a mask for an evictable cache: which new tokens of a pass are padding.

    Attributes:
        causal: the model masks by causality and padding alone.
    """

    def __init__(self, padding: Tensor | None, num_new: int, *, causal: bool = True) -> None:
        self.causal = causal
        self._padding = padding  # [B, at least the new tokens] bool
        self._num_new = num_new

    @cached_property
    def padding(self) -> Tensor | None:
        """Which of this pass's tokens are real, bool [B, q]; None when all are.

        A single token behind others was just written by the model, so it is real; checking would
        only wait for the device.
        """
        padding = self._padding
        if padding is None or (self._num_new == 1 and padding.shape[1] > 1):
            return None
        padding = padding[:, -self._num_new :].bool()
        return None if bool(padding.all()) else padding


def bottom_right_mask(
    num_rows: int, num_keys: int, valid: Tensor | None, device: torch.device
) -> Tensor | None:
    """Which keys the last ``num_rows`` tokens see: bool [1 or B, 1, q, S]; None for all of them.

    They are causal among themselves. A padding row sees itself, so that its softmax is not empty;
    no real row ever sees a padding key.
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
