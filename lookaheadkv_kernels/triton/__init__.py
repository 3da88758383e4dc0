"""The Triton backend: NVIDIA GPUs without the compiled library, AMD GPUs, and chips to come.

The four rooms are attention.py (and prefill.py), scores.py (and its gradient), select.py (and long
rows) and gather.py; heuristics.py chooses tiles and splits, launch.py runs or records kernels.
Importing this package imports nothing of Triton; :func:`register` does.
"""

from __future__ import annotations

import torch

from .target import available, interpreting

__all__ = ["available", "interpreting", "register"]


def register(key: str) -> torch.library.Library:
    """Serve dispatch key ``key`` ("CUDA", or "CPU" in the interpreter) for as long as it lives.

    Kernels that were registered for the key before serve it again when the library is destroyed.
    """
    from .ops import OPS

    library = torch.library.Library("lookaheadkv", "IMPL", key)
    for name, function in OPS.items():
        library.impl(name, function, key, allow_override=True)
    return library
