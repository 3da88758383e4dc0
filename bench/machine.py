"""Where a figure was measured: the facts in every JSON file, and the key of stored baselines."""

from __future__ import annotations

import datetime
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from lookaheadkv_kernels.info import active_isa, cpu_model

ROOT = Path(__file__).resolve().parent.parent


def commit() -> str:
    """The revision that was measured, marked when the tree differs from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return found.stdout.strip() or "unknown"


def device_name(device: torch.device | str) -> str:
    """The GPU; or the CPU with its instruction set and threads, which decide its speed, too."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name()
    return f"{cpu_model()}, {active_isa()}, {torch.get_num_threads()} threads"


def key(device: torch.device | str) -> dict[str, str]:
    """What must be the same for two times to be comparable."""
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
    }


def command(module: str) -> str:
    """How this process was started, as `python -m` of a module."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def host() -> dict[str, Any]:
    """The CPU, torch's threads and its version: on what a model's results were measured."""
    return {"cpu": cpu_model(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def facts(device: torch.device | str, command: str) -> dict[str, Any]:
    """The key, and when and how it was measured."""
    today = datetime.date.today().isoformat()
    return {"date": today, "commit": commit(), "command": command, **key(device)}


def slug(text: str) -> str:
    """The text as part of a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
