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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .._differences import differences
from ..lookahead import LookaheadConfig, LookaheadModules, load_modules, save_modules
from ..lookahead.files import read_config, sync
from .config import FREE

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


def check_resumable(
    folder: Path, record: Mapping[str, Any], config: LookaheadConfig
) -> Path | None:
    """The newest whole checkpoint below ``folder`` if the run may go on from it, None without one.

    Args:
        folder: of the run.
        record: of the run that would go on.
        config: of its modules.

    Raises:
        ValueError: the checkpoint is damaged, or was made with other arguments.
    """
    if (path := latest(folder)) is None:
        return None
    changes = differences(_flat(read_config(path)), _flat(config))
    # What a run began with is told by its name; the runs before it would fill pages.
    changes += differences(read_state(path).config, record, free=(*FREE, "earlier"))
    if changes:
        raise ValueError(
            f"{path} was made with other hyper-parameters: {'; '.join(changes)}; run it with the "
            "old ones to go on, or begin a new run with its modules: "
            f"--init {path} and another --output"
        )
    return path


def _flat(config: LookaheadConfig) -> dict[str, Any]:
    values = config.to_dict()
    return {**values.pop("model"), **values}


def read_state(path: Path) -> State:
    """Where the run stood at a checkpoint.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        data = json.loads((path / STATE_FILE).read_text())
        return State(**data)._replace(evaluations=[tuple(pair) for pair in data["evaluations"]])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path / STATE_FILE} is damaged: {error}") from error


def save_checkpoint(
    folder: Path,
    modules: LookaheadModules,
    optimizer: torch.optim.Optimizer,
    state: State,
) -> Path:
    """Write a checkpoint below ``folder``, then delete older ones; returns where it is."""
    final = folder / _name(state.step)
    for path in folder.glob(".step-??????.partial"):  # of a run that was killed
        shutil.rmtree(path, ignore_errors=True)
    temporary = folder / f".{final.name}.partial"
    temporary.mkdir(parents=True)
    save_modules(modules, temporary, training=state.config)
    save_file(_moments(modules, optimizer), temporary / OPTIMIZER_FILE)
    (temporary / STATE_FILE).write_text(json.dumps(state._asdict()))
    for path in (*temporary.iterdir(), temporary):
        sync(path)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    sync(folder)
    for path in folder.glob("step-??????"):
        if path.name < final.name:
            shutil.rmtree(path, ignore_errors=True)
    return final


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
    state = read_state(path)
    try:
        moments = load_file(path / OPTIMIZER_FILE)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path / OPTIMIZER_FILE} is damaged: {error}") from error
    modules.load_state_dict(saved.state_dict())
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
