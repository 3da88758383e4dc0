"""Which implementation serves a tensor: by its device, unless one is asked for."""

from __future__ import annotations

import os

import torch

from . import _library

BACKENDS = ("cuda", "triton", "cpu")
ENVIRONMENT_VARIABLE = "LOOKAHEADKV_BACKEND"

_chosen: str | None = None


def available_backends() -> tuple[str, ...]:
    """Names of the backends that can run in this process, e.g. ``("cpu",)``."""
    return _library.load()


def set_backend(name: str | None) -> None:
    """Use this backend for every later call; ``None`` goes back to the automatic choice.

    Takes precedence over the environment variable ``LOOKAHEADKV_BACKEND``.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the backend is not available in this process.
    """
    global _chosen
    if name is not None:
        _require_available(name, "set_backend")
    _chosen = name


def check_environment() -> None:
    """Called at import: a wish that cannot be met must not be passed over in silence.

    Raises:
        ValueError: ``LOOKAHEADKV_BACKEND`` holds an unknown name.
        RuntimeError: the backend it names is not available in this process.
    """
    if asked := os.environ.get(ENVIRONMENT_VARIABLE):
        _require_available(asked, ENVIRONMENT_VARIABLE)


def backend_for(device: torch.device | str) -> str:
    """Name of the backend that serves tensors on ``device``.

    Raises:
        ValueError: ``LOOKAHEADKV_BACKEND`` holds an unknown name.
        RuntimeError: the backend asked for is not available or does not serve this device, or no
            available backend does.
    """
    kind = torch.device(device).type
    asked = _chosen or os.environ.get(ENVIRONMENT_VARIABLE) or None
    if asked is None:
        if kind in available_backends():
            return kind
        raise RuntimeError(
            f"lookaheadkv: no backend for {kind} tensors; available: {_names(available_backends())}"
        )
    _require_available(asked, "set_backend" if _chosen else ENVIRONMENT_VARIABLE)
    if asked != kind:
        raise RuntimeError(f"lookaheadkv: backend {asked!r} does not serve {kind} tensors")
    return asked


def _require_available(name: str, asked_by: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{asked_by}: backend must be one of {_names(BACKENDS)}, got {name!r}")
    if name not in available_backends():
        raise RuntimeError(
            f"{asked_by}: backend {name!r} is not available here; "
            f"available: {_names(available_backends())}"
        )


def _names(backends: tuple[str, ...]) -> str:
    return ", ".join(backends)
