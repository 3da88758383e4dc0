"""The attention function and mask that transformers calls while eviction is attached.

Both are registered under ``lookaheadkv_<base>``. For any other cache they call the base
implementation with its own mask, so that an attached model computes what it always did. For an
:class:`~.cache.EvictableCache` the layer itself attends: it knows which entries it stores, which
differs between layers and rows, so that no mask made once for all layers could be right.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function

from .arguments import attention_scale
from .cache import EVICTABLE_OFFSET, LAYER_ATTRIBUTE
from .compiled import as_written
from .masks import StepMask
from .structure import check_supported, decoder_of

PREFIX = "lookaheadkv_"


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
        marked = any(getattr(t, LAYER_ATTRIBUTE, None) is not None for t in (key, value))
        if marked or isinstance(attention_mask, StepMask):
            return _attend(module, query, key, value, attention_mask, kwargs), None
        result: tuple[Tensor, Tensor | None] = _base_attention(base, module)(
            module, query, key, value, attention_mask, **kwargs
        )
        return result

    def mask(**kwargs: Any) -> Any:
        offset = kwargs["kv_offset"]
        # Some caches have a tensor here, whose value must not be asked for while tracing.
        if not (isinstance(offset, int) and offset == EVICTABLE_OFFSET):
            return base_mask(**kwargs)
        # Some models make masks for kinds of layers that they do not have.
        causal = kwargs.get("mask_function", causal_mask_function) is causal_mask_function
        return StepMask(kwargs.get("attention_mask"), kwargs["q_length"], causal=causal)

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)
    return name


@as_written
def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    arguments: Mapping[str, object],
) -> Tensor:
    """Attention of one layer over what an evictable cache stores.

    Raises:
        ValueError: the module asks for something that eviction does not know.
        RuntimeError: its keys did not come from the cache.
    """
    owner = type(module).__name__
    place = getattr(key, LAYER_ATTRIBUTE, None)
    if place is not getattr(value, LAYER_ATTRIBUTE, None):
        raise ValueError(
            f"{owner} attends to other keys or values than its cache returned: eviction cannot "
            "follow that"
        )
    if place is None:
        raise RuntimeError(
            f"{owner} did not pass its keys through the cache; in training mode gradient "
            "checkpointing does that: call model.eval()"
            if module.training
            else f"{owner} attends to other keys and values than its cache returned: eviction "
            "cannot follow that"
        )
    if not isinstance(attention_mask, StepMask):
        raise ValueError(
            "an evictable cache takes 2-D attention masks [B, tokens], got "
            f"{list(getattr(attention_mask, 'shape', ()))}"
        )
    if not attention_mask.causal:
        raise ValueError(
            f"{owner} masks its attention by more than causality and padding: eviction does not "
            "support it"
        )
    scale = attention_scale(owner, query.shape[3], arguments)
    cache, index = place
    out: Tensor = cache.attend(index, scale, query, key, value, attention_mask.padding)
    return out


def _base_attention(base: str, module: Any) -> Any:
    """The function behind a name; ``eager`` lives in each model's own file."""
    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return AttentionInterface().get_interface(base, own)


def attach(model: Any) -> str:
    """Put our attention over the model's own; returns the own one's name, to restore it later.

    Only the part that holds the cache is changed, not what else a model may have (a vision tower).

    Raises:
        ValueError: the model is not supported; it is as it was before.
    """
    check_supported(model)
    decoder = decoder_of(model)
    before: str = decoder.config._attn_implementation
    base = before.removeprefix(PREFIX)
    name = register(base)
    try:
        decoder.set_attn_implementation(name)
        if decoder.config._attn_implementation != name:
            raise ValueError(
                f"{type(decoder).__name__} does not attend through transformers' attention "
                "interface"
            )
    except BaseException:
        decoder.config._attn_implementation_internal = before
        raise
    return base


def detach(model: Any, base: str) -> None:
    """Give a model back the attention that :func:`attach` found."""
    decoder_of(model).set_attn_implementation(base)
