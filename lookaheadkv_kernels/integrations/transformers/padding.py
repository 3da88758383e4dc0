"""The padding of prompts whose mask is missing, inferred as transformers' `generate` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def option_of(model: Any, options: Mapping[str, Any], name: str) -> Any:
    """An option of ``generate``: as an argument, in its config, or in the model's own."""
    if name in options:  # None, too, takes precedence
        return options[name]
    configs = (options.get("generation_config"), model.generation_config)
    values = (getattr(config, name, None) for config in configs)
    return next((value for value in values if value is not None), None)


def inferred_mask(
    model: Any, input_ids: Tensor | None, options: Mapping[str, Any] | None = None
) -> Tensor | None:
    """Bool [B, N], false at pad tokens; None where nothing says that there is padding.

    A pad token that also ends answers says nothing, for a prompt may contain it.

    Args:
        model: its generation config knows the pad token.
        input_ids: int64 [B, N]; None: the prompt is made of embeddings.
        options: of ``generate``, which may name other tokens.
    """
    pad = option_of(model, options or {}, "pad_token_id")
    ends = option_of(model, options or {}, "eos_token_id")
    if pad is None or input_ids is None:
        return None
    pad = int(pad)
    if ends is not None and pad in torch.as_tensor(ends, device="cpu").flatten().tolist():
        return None
    mask = input_ids != pad
    return None if bool(mask.all()) else mask


def explained(
    error: ValueError, model: Any, options: Mapping[str, Any] | None = None
) -> ValueError:
    """The same error about a mask that the user never gave."""
    pad = option_of(model, options or {}, "pad_token_id")
    return ValueError(
        f"{error}; attention_mask was inferred from pad_token_id={pad}: pass it to say which "
        "tokens are padding"
    )
