"""Modules that let every row of a pass see all others: quantisation by statistics of the pass.

A linear map that scales its input by the largest value of all rows (per-tensor dynamic
quantisation) computes something else for a prompt when learned rows run with it, or when it runs in
chunks. Whether a module does that is seen by asking it: one row, beside nothing and beside a large
one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Their rows are independent, and calling them costs time.
ROW_BY_ROW = (nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.Dropout, nn.Identity)
# Splits off columns that hold an outlier in any row; too little to be seen in one row's result.
BY_OUTLIERS = "Linear8bitLt"
LARGE = 1e3
# Rounding changes a row by far less, a scale that it shares with others by far more.
TOLERANCE = 1e-2


def modules_over_rows(decoder: nn.Module) -> list[str]:
    """Modules of a decoder whose result for a row depends on the other rows: name and class."""
    known: dict[tuple[object, ...], bool] = {}
    found = []
    for name, module in decoder.named_modules():
        sizes = list(_widths(module, decoder))
        if not sizes:
            continue
        # Options of a quantised map stand in its weight; one map answers for all that print alike.
        weight = getattr(module, "weight", None)
        kind = (type(module), type(weight), module.extra_repr(), tuple(sizes))
        if kind not in known:
            known[kind] = _by_outliers(module) or any(_mixes(module, size) for size in sizes)
        if known[kind]:
            found.append(f"{name} ({type(module).__name__})")
    return found


def _widths(module: nn.Module, decoder: nn.Module) -> Iterator[int]:
    """Sizes of the rows that a module may take; none if its rows are known to be independent."""
    weight = getattr(module, "weight", None)
    plain = type(weight) in (nn.Parameter, Tensor)
    if isinstance(module, ROW_BY_ROW) or (type(module) is nn.Linear and plain):
        return
    size = getattr(module, "in_features", None)
    if isinstance(size, int):
        yield size
        return
    if any(True for _ in module.children()):
        return
    if isinstance(weight, Tensor):
        if weight.ndim == 1:
            yield len(weight)
        return
    if type(module).__module__.startswith(("torch.nn.", "transformers.activations")):
        return
    config: Any = getattr(decoder, "config", None)
    for name in ("hidden_size", "intermediate_size"):
        size = getattr(config, name, None)
        if isinstance(size, int):
            yield size


def _by_outliers(module: nn.Module) -> bool:
    state = getattr(module, "state", None)
    return type(module).__name__ == BY_OUTLIERS and getattr(state, "threshold", 6.0) > 0


@torch.no_grad()
def _mixes(module: nn.Module, size: int) -> bool:
    """Whether a large row changes another one; False where the module does not take such rows."""
    held = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    dtype = held[0].dtype if held and held[0].dtype in (torch.float16, torch.bfloat16) else None
    device = held[0].device if held else torch.device("cpu")
    if device.type == "meta":
        return False
    row = torch.linspace(-1, 1, size, device=device, dtype=dtype)
    alone = torch.stack([row, torch.zeros_like(row)])[None]
    beside = torch.stack([row, LARGE * row])[None]
    try:
        # `forward`, so that no hook of the user sees rows that are not the user's.
        one, other = (module.forward(x) for x in (alone, beside))
    except Exception:  # takes something else than rows of this size
        return False
    if not all(isinstance(t, Tensor) and t.ndim == 3 and t.shape[1] == 2 for t in (one, other)):
        return False
    one, other = one[0, 0].float(), other[0, 0].float()
    return not bool((one - other).norm() <= TOLERANCE * one.norm())
