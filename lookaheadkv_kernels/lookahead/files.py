"""Lookahead modules on disk: ``config.json`` and ``lookahead.safetensors`` in one folder.

Safetensors holds no code, so a file from a stranger can be read. Both files are written beside
their final place and renamed, weights first: a reader finds the old pair, the new pair, or a config
that names the checksum of weights it does not find, which is an error, never a silent mixture.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from .config import LookaheadConfig
from .modules import LookaheadModules

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "lookahead.safetensors"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at ``path``; after a crash either the old or the new content is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        sync(path.parent)  # the new name, too, is on the disk
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    # Some file systems cannot sync a folder, and need not.
    try:
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(handle)
    finally:
        os.close(handle)


def save_modules(
    modules: LookaheadModules,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write ``modules`` into ``folder``, which is made if need be.

    Args:
        modules: what to save.
        folder: where to save it.
        dtype: stored dtype of the weights; None keeps theirs.
        training: facts about the training (data, steps, seed) kept in ``config.json``.
    """
    folder = Path(folder)
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in modules.state_dict().items()
    }
    weights = save(tensors, metadata={"format": "pt"})
    config = {
        **modules.config.to_dict(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "training": training or {},
    }
    write_atomically(folder / WEIGHTS_FILE, weights)
    write_atomically(folder / CONFIG_FILE, (json.dumps(config, indent=1) + "\n").encode())


def weights_sha256(folder: str | Path) -> str:
    """Checksum of the weights in ``folder``."""
    return hashlib.sha256((Path(folder) / WEIGHTS_FILE).read_bytes()).hexdigest()


def training_record(folder: str | Path) -> dict[str, Any]:
    """What ``config.json`` in ``folder`` says of the training; checked by :func:`load_modules`."""
    record: dict[str, Any] = json.loads((Path(folder) / CONFIG_FILE).read_text())["training"]
    return record


def read_config(folder: str | Path) -> LookaheadConfig:
    """The configuration of the modules in ``folder``, without their weights.

    Raises:
        FileNotFoundError: there are no lookahead modules in ``folder``.
        ValueError: the file is damaged, or of another format version.
    """
    return LookaheadConfig.from_dict(_config_data(Path(folder))[0])


def _config_data(folder: Path) -> tuple[dict[str, Any], Any]:
    """What ``config.json`` says of the modules, and the checksum of their weights."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no lookahead modules in {folder}: {name} is missing")
    try:
        data = json.loads((folder / CONFIG_FILE).read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder / CONFIG_FILE} is damaged: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{folder / CONFIG_FILE} is damaged: not a JSON object")
    data.pop("training", None)
    return data, data.pop("weights_sha256", None)


def load_modules(folder: str | Path) -> LookaheadModules:
    """Read what :func:`save_modules` wrote; on the CPU, in the dtype of the file.

    Raises:
        FileNotFoundError: there are no lookahead modules in ``folder``.
        ValueError: a file is damaged, of another format version, or the two do not belong together.
    """
    folder = Path(folder)
    data, expected = _config_data(folder)
    weights = (folder / WEIGHTS_FILE).read_bytes()
    config = LookaheadConfig.from_dict(data)
    if hashlib.sha256(weights).hexdigest() != expected:
        raise ValueError(
            f"{folder / WEIGHTS_FILE} is damaged or belongs to another {CONFIG_FILE}: its SHA-256 "
            f"is not {expected}"
        )
    try:
        tensors = load(weights)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} is damaged: {error}") from error
    # Without memory of their own: the file brings it, and a damaged size could ask for any amount.
    with torch.device("meta"):
        modules = LookaheadModules(config)
    try:
        modules.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} does not fit its config: {error}") from error
    return modules.requires_grad_(False)
