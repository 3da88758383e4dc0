"""Checks of what users pass: types and shapes, refused by name before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...lookahead import LookaheadModules
from ...policies import POLICY_NAMES, Policy, make_policy

INTEGERS = (torch.int64, torch.int32)


def as_policy(policy: object) -> Policy:
    """A policy itself, or by the name that the commands use.

    Raises:
        ValueError: it is neither, or a name whose policy needs more than a name.
    """
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, type):
        raise ValueError(f"policy must be an object, got the class {policy.__name__}: call it")
    if not isinstance(policy, str):
        raise ValueError(
            f"policy must be a Policy or the name of one, got {type(policy).__name__}; "
            f"there are {', '.join(POLICY_NAMES)}"
        )
    try:
        return make_policy(policy)
    except TypeError as error:
        raise ValueError(f"policy {policy!r} needs more than its name: {error}") from error


def check_modules(modules: object) -> None:
    """Refuse anything but lookahead modules.

    Raises:
        ValueError: names the type.
    """
    if not isinstance(modules, LookaheadModules):
        raise ValueError(
            f"modules must be LookaheadModules, got {type(modules).__name__}; "
            "LookaheadKV.from_pretrained(name, model) loads them by name"
        )


def check_name(name: object) -> None:
    """Refuse a name of modules that is none.

    Raises:
        ValueError: names the type.
    """
    if not isinstance(name, str | Path):
        raise ValueError(
            f"name must be a str or a Path, got {type(name).__name__}: "
            "from_pretrained takes the name first, then the model"
        )


def check_tokens(model: Any, **given: object) -> None:
    """Refuse inputs that are no tensors, or of a kind that no model takes; None is not given.

    Args:
        model: who gets them.
        **given: ``input_ids``, ``inputs_embeds``, ``attention_mask`` and ``position_ids``.

    Raises:
        ValueError: names the argument, and its type, dtype or shape.
    """
    for name, value in given.items():
        if value is None:
            continue
        if not isinstance(value, Tensor):
            hint = "; pass a tokenizer's result as **inputs" if hasattr(value, "keys") else ""
            raise ValueError(f"{name} must be a tensor, got {type(value).__name__}{hint}")
        if name in ("input_ids", "position_ids") and value.dtype not in INTEGERS:
            raise ValueError(f"{name} must be of dtype int64 or int32, got {value.dtype}")
        if name == "inputs_embeds":
            _check_embeddings(model, value)
        if name == "attention_mask":
            _check_mask(value)


def _check_embeddings(model: Any, embeds: Tensor) -> None:
    if not embeds.is_floating_point():
        raise ValueError(f"inputs_embeds must be floating-point, got {embeds.dtype}")
    hidden = model.get_input_embeddings().weight.shape[1]
    if embeds.dim() == 3 and embeds.shape[2] != hidden:
        raise ValueError(f"inputs_embeds must be [B, N, {hidden}], got {list(embeds.shape)}")


def _check_mask(mask: Tensor) -> None:
    """A mask that is added to logits has 0 where ours has 1."""
    if mask.is_floating_point() and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            "attention_mask must be 0 at padding and 1 elsewhere, got values from "
            f"{float(mask.min())} to {float(mask.max())}"
        )
