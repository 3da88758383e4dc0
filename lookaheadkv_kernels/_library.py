"""Finds and loads the compiled op libraries, and names the namespace of their ops."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import torch

# The one place that names it: a build for the kernels hub has another (hub/package.py).
NAMESPACE = "lookaheadkv"
OPS = torch.ops.lookaheadkv

LIBRARY_DIR = Path(__file__).parent / "lib"


def library_path(device: str) -> Path:
    """Where the op library of ``device`` ("cpu" or "cuda") lies if it was built."""
    return LIBRARY_DIR / f"liblookaheadkv_{device}.so"


@functools.cache
def load() -> tuple[str, ...]:
    """Register ``torch.ops.lookaheadkv`` and return the devices whose kernels are now loaded.

    The CUDA library is loaded only where CUDA is available: it needs symbols that a CPU-only torch
    lacks. One that cannot be loaded is warned of and left alone: the CPU's kernels work, and GPU
    tensors are Triton's.

    Raises:
        ImportError: the CPU library, which holds every schema, is missing or cannot be loaded.
    """
    path = library_path("cpu")
    if not path.is_file():
        raise ImportError(
            f"lookaheadkv_kernels: the op library {path.name} is not in {path.parent}. Install the "
            "package (pip install . or pip install -e . --no-build-isolation) instead of importing "
            "it from its source tree."
        )
    loaded = ["cpu"]
    _load(path)
    if library_path("cuda").is_file() and torch.cuda.is_available():
        try:
            _load(library_path("cuda"))
        except ImportError as error:
            warnings.warn(
                f"{error}. GPU tensors are served by Triton where it is installed, by nothing "
                "otherwise.",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            loaded.append("cuda")
    return tuple(loaded)


def _load(path: Path) -> None:
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"lookaheadkv_kernels: cannot load {path} with torch {torch.__version__} "
            f"(2.10 or newer is needed): {error.__cause__ or error}"
        ) from error
