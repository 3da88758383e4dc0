"""Which implementation serves a tensor: by its device, unless one is asked for."""

from __future__ import annotations

import os

import torch

from . import _library, triton

BACKENDS = ("cuda", "triton", "cpu")
ENVIRONMENT_VARIABLE = "LOOKAHEADKV_BACKEND"

_chosen: str | None = None
_triton_kernels: torch.library.Library | None = None
_prefill_route: torch.library.Library | None = None


def available_backends() -> tuple[str, ...]:
    """Names of the backends that can run in this process, e.g. ``("cpu",)``."""
    loaded = _library.load()
    return (*loaded, "triton") if triton.available() else loaded


def set_backend(name: str | None) -> None:
    """Use this backend for every later call; ``None`` goes back to the automatic choice.

    Takes precedence over the environment variable ``LOOKAHEADKV_BACKEND``, which is read at import
    and here.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the backend is not available in this process.
    """
    global _chosen
    if name is not None:
        _require_available(name, "set_backend")
    _chosen = name
    register_kernels()


def register_kernels() -> None:
    """Register or unregister the Triton kernels according to the current backend choice.

    The compiled libraries register their own kernels when they are loaded; Triton's go over them
    where they are asked for, and where there is no compiled library for the device. Where both are
    there and nobody asked, ``prefill_attention`` alone goes to the one that is expected to be
    faster on the tensor's GPU. No device is looked for: that would start CUDA at import, and a
    process that did so cannot fork.
    """
    global _triton_kernels, _prefill_route
    asked = _chosen or os.environ.get(ENVIRONMENT_VARIABLE) or None
    automatic = asked is None and triton.served_device() not in _library.load()
    wanted = triton.installed() and (asked == "triton" or automatic)
    routed = asked is None and triton.installed() and "cuda" in _library.load()
    if _prefill_route is not None and not routed:  # before Triton's: the last one on leaves first
        _prefill_route._destroy()
        _prefill_route = None
    if wanted and _triton_kernels is None:
        _triton_kernels = triton.register()
    elif not wanted and _triton_kernels is not None:
        _triton_kernels._destroy()
        _triton_kernels = None
    if routed and _prefill_route is None:
        _prefill_route = triton.route_prefill("cuda", triton.leads_prefill)


def check_environment() -> None:
    """Called at import: an unavailable backend must raise, not be ignored.

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
        if kind in _library.load():
            return kind
        if triton.available() and kind == triton.served_device():
            return "triton"
        raise RuntimeError(
            f"lookaheadkv: no backend for {kind} tensors; available: {_names(available_backends())}"
        )
    _require_available(asked, "set_backend" if _chosen else ENVIRONMENT_VARIABLE)
    if kind != (triton.served_device() if asked == "triton" else asked):
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
