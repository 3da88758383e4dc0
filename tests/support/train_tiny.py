"""Trains modules of the tiny model: `train_tiny.py OUTPUT STEPS PAUSE`."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # run as a script, too
from support.tiny_model import WORDS, random_modules, tiny_llama

from lookaheadkv_kernels.integrations.transformers.attention import attach
from lookaheadkv_kernels.training.config import TrainingConfig
from lookaheadkv_kernels.training.trainer import Trainer


class Sample(NamedTuple):
    prompt_ids: list[int]
    response_ids: list[int] | None


class Samples:
    """Random tokens; a pause makes a run long enough to be killed in its midst."""

    def __init__(self, pause: float) -> None:
        self.pause = pause

    def __getitem__(self, index: int) -> Sample:
        time.sleep(self.pause)
        draw = random.Random(index)
        ids = [draw.randrange(6, WORDS + 6) for _ in range(draw.randrange(20, 60))]
        return Sample(ids, ids[:8] if index % 2 else None)


def make_trainer(output: str, steps: int, pause: float = 0.0, **options: object) -> Trainer:
    """Everything but the number of processes is fixed."""
    model = tiny_llama()
    attach(model)
    modules = random_modules(model, num_lookahead=4, lora_rank=2)
    config = TrainingConfig(
        steps=steps,
        batch_size=3,
        max_response=6,
        **{"checkpoint_every": 2, **options},  # type: ignore[arg-type]
    )
    return Trainer(model, modules, Samples(pause), output, config)


if __name__ == "__main__":
    torch.set_num_threads(1)
    output, steps, pause = sys.argv[1:]
    make_trainer(output, int(steps), float(pause)).run()
