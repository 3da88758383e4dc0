"""Checkpoints in open formats (no pickle) that stay whole if the process is killed at any moment.

A checkpoint is a folder ``step-000123``: the modules (float32), Adam's moments, and the history of
losses. It is written under another name and renamed when complete, so a folder of that name is
always whole; the one before is deleted only afterwards. Data need no state: sample i is always the
same sample.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from ..lookahead import LookaheadModules, load_modules, save_modules

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"


class State(NamedTuple):
    """Where a run stands."""

    step: int  # optimizer steps done
    losses: list[float]  # of every step done
    evaluations: list[tuple[int, float]]  # (steps done, held-out loss)
    config: dict[str, Any]  # of the run, so that it is not resumed with another one


def _name(step: int) -> str:
    return f"step-{step:06d}"


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint below ``folder``."""
    return max(folder.glob("step-??????"), default=None)


def save_checkpoint(
    folder: Path,
    modules: LookaheadModules,
    optimizer: torch.optim.Optimizer,
    state: State,
) -> None:
    """Write a checkpoint below ``folder``, then delete older ones."""
    final = folder / _name(state.step)
    temporary = folder / f".{final.name}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_modules(modules, temporary, training=state.config)
    save_file(_moments(modules, optimizer), temporary / OPTIMIZER_FILE)
    (temporary / STATE_FILE).write_text(json.dumps(state._asdict()))
    for path in temporary.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    for path in folder.glob("step-??????"):
        if path.name < final.name:
            shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(
    path: Path, modules: LookaheadModules, optimizer: torch.optim.Optimizer
) -> State:
    """Fill ``modules`` and ``optimizer`` from a checkpoint; returns where the run stood.

    Raises:
        ValueError: the checkpoint is damaged or of other modules.
    """
    saved = load_modules(path)
    if saved.config != modules.config:
        raise ValueError(f"{path} holds modules of another configuration: {saved.config}")
    modules.load_state_dict(saved.state_dict())
    data = json.loads((path / STATE_FILE).read_text())
    state = State(**data)._replace(evaluations=[tuple(pair) for pair in data["evaluations"]])
    moments = load_file(path / OPTIMIZER_FILE)
    for name, parameter in modules.named_parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.step)),
            "exp_avg": moments[f"exp_avg.{name}"].to(parameter.device),
            "exp_avg_sq": moments[f"exp_avg_sq.{name}"].to(parameter.device),
        }
    return state


def _moments(
    modules: LookaheadModules, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    return {
        f"{moment}.{name}": optimizer.state[parameter][moment].cpu().contiguous()
        for name, parameter in modules.named_parameters()
        for moment in ("exp_avg", "exp_avg_sq")
    }
