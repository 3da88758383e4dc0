"""The attention function and mask that transformers calls while eviction is attached.

Both are registered under ``lookaheadkv_<base>``. For any other cache they call the base
implementation with its own mask, so that an attached model computes what it always did. For an
:class:`~.cache.EvictableCache` the layer itself attends: it knows which entries it stores, which
differs between layers and rows, so that no mask made once for all layers could be right.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from .cache import LAYER_ATTRIBUTE
from .masks import EvictableLength, StepMask

PREFIX = "lookaheadkv_"
# Options that some models pass to their attention, and that eviction would silently ignore.
OTHER_ATTENTION = ("sliding_window", "softcap", "s_aux")


def register(base: str) -> str:
    """Register our attention over ``base`` with transformers; returns its name.

    Raises:
        ValueError: transformers knows no mask for ``base``.
    """
    name = base if base.startswith(PREFIX) else PREFIX + base
    base = name.removeprefix(PREFIX)
    masks = AttentionMaskInterface()
    if base not in masks:
        raise ValueError(f"attention implementation {base!r} is not supported")
    base_mask = masks[base]

    def attention(
        module: Any,
        query: Tensor,  # [B, Hq, q, D]
        key: Tensor,  # [B, Hkv, S, D]
        value: Tensor,  # [B, Hkv, S, D]
        attention_mask: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        place = getattr(key, LAYER_ATTRIBUTE, None)
        if place is None:
            if isinstance(attention_mask, StepMask):
                raise RuntimeError(
                    f"{type(module).__name__} did not pass its keys through the cache; in "
                    "training mode gradient checkpointing does that: call model.eval()"
                )
            result: tuple[Tensor, Tensor | None] = _base_attention(base, module)(
                module, query, key, value, attention_mask, **kwargs
            )
            return result
        if not isinstance(attention_mask, StepMask):
            raise ValueError(
                "an evictable cache takes 2-D attention masks [B, tokens], got "
                f"{list(getattr(attention_mask, 'shape', ()))}"
            )
        for option in OTHER_ATTENTION:
            if kwargs.get(option) is not None:
                raise ValueError(
                    f"{type(module).__name__} attends with {option}: eviction does not support it"
                )
        cache, index = place
        return cache.attend(index, module, query, key, value, attention_mask.padding), None

    def mask(**kwargs: Any) -> Any:
        if isinstance(kwargs["kv_length"], EvictableLength):
            return StepMask(kwargs.get("attention_mask"), kwargs["q_length"])
        return base_mask(**kwargs)

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)
    return name


def _base_attention(base: str, module: Any) -> Any:
    """The function behind a name; ``eager`` lives in each model's own file."""
    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return AttentionInterface().get_interface(base, own)


def attach(model: Any) -> str:
    """Put our attention over the model's own; returns the own one's name, to restore it later."""
    base: str = model.config._attn_implementation.removeprefix(PREFIX)
    model.set_attn_implementation(register(base))
    return base
