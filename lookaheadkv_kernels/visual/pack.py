"""What a policy kept, in few bytes: base64 strings that the page's script reads once.

Every row (layer-major, then KV head) has a count in ``counts``; ``positions`` holds the rows' kept
positions one after the other, little-endian, 16 bits each (32 for a prompt of more than 65,536
tokens), ``scores`` one byte for each of them: ``-8 * log2(score)``, so that a step is 9 percent,
or 255 for an entry without a score.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

from .picture import PolicyView

STEPS_PER_HALVING = 8
LOWEST = 254
NO_SCORE = 255


def is_wide(num_tokens: int) -> bool:
    """Whether positions take 32 bits."""
    return num_tokens > 1 << 16


def pack_policy(policy: PolicyView, num_tokens: int) -> dict[str, Any]:
    """The policy as JSON data."""
    kept = policy.positions >= 0
    packed: dict[str, Any] = {
        "name": policy.name,
        "counts": kept.sum(axis=2).ravel().tolist(),
        "positions": _base64(
            policy.positions[kept].astype("<u4" if is_wide(num_tokens) else "<u2")
        ),
        "scores": None,
    }
    if policy.scores is not None:
        packed["scores"] = _base64(quantise(policy.scores[kept]))
    return packed


def quantise(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Scores in (0, 1] as bytes; lower is larger."""
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.rint(-STEPS_PER_HALVING * np.log2(scores.astype(np.float64)))
    steps = np.clip(np.nan_to_num(steps, nan=LOWEST, posinf=LOWEST), 0, LOWEST)
    return np.where(np.isnan(scores), NO_SCORE, steps).astype(np.uint8)


def _base64(array: npt.NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
