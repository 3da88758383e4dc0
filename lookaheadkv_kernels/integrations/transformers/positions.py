"""Positions of new tokens: counted from the mask, behind what each row has seen."""

from __future__ import annotations

import torch
from torch import Tensor


def counted_positions(
    mask: Tensor | None,  # [B, N], 0 at padding; None: all tokens are real
    batch: int,
    length: int,
    seen: Tensor | None,  # [B] int64, real tokens of each row so far; None: none
    device: torch.device,
) -> Tensor:
    """int64 [B, N]: a row's real tokens follow each other; padding has the place before them."""
    real = torch.ones(batch, length, dtype=torch.int64, device=device)
    counted = (real if mask is None else mask.to(real)).cumsum(dim=1) - 1
    positions = counted.clamp(min=0)
    return positions if seen is None else positions + seen.to(positions)[:, None]
