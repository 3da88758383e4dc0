"""Hyper-parameters of a training run; the defaults are the paper's (table 6, section 4.1)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

# When checkpoints are written changes no result.
FREE = ("checkpoint_every", "checkpoint_minutes")


@dataclass(frozen=True)
class TrainingConfig:
    """How lookahead modules are trained.

    Args:
        steps: optimizer steps.
        batch_size: samples per step, over all processes; any number of processes may share them.
        learning_rate: peak rate; the paper has 1e-3 for Llama and 2e-4 for Qwen.
        betas: of Adam.
        warmup: share of the steps in which the rate rises linearly; it then falls as a cosine to 0.
        clip: largest norm of a step's gradient.
        max_prompt: longer prompts lose tokens in the middle, so that both ends stay.
        max_response: longest response, in tokens, whether given or written by the model itself.
        seed: of the initial weights and of everything random in the data.
        checkpointing: recompute layers in backward to save memory.
        checkpoint_every: steps between checkpoints.
        checkpoint_minutes: most minutes between checkpoints, as soon as a step has ended; 0: only
            steps count.
        eval_every: steps between evaluations on held-out samples; 0 switches them off.
        eval_samples: held-out samples of an evaluation.
    """

    steps: int = 7600
    batch_size: int = 32
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 0.02
    clip: float = 1.0
    max_prompt: int = 16_384
    max_response: int = 512
    seed: int = 0
    checkpointing: bool = False
    checkpoint_every: int = 25
    checkpoint_minutes: float = 10.0
    eval_every: int = 0
    eval_samples: int = 16

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "max_prompt", "max_response", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"training: {name} must be >= 1, got {getattr(self, name)}")
        for name in ("checkpoint_minutes", "eval_every"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"training: {name} must be >= 0, got {getattr(self, name)}")
        if self.eval_every and self.eval_samples < 1:
            raise ValueError(f"training: eval_samples must be >= 1, got {self.eval_samples}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"training: warmup must be in [0, 1), got {self.warmup}")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            if not value > 0 or (name == "learning_rate" and not isfinite(value)):
                raise ValueError(f"training: {name} must be > 0, got {value}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "betas": list(self.betas)}
