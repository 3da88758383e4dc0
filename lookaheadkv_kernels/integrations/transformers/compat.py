"""The few names that differ between the supported releases of transformers."""

from __future__ import annotations

import inspect
from typing import Any


def cache_argument(model: Any) -> str:
    """What ``model.forward`` calls its KV cache: ``cache``, or ``past_key_values`` before 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def decoder_layers(model: Any) -> Any:
    """The decoder layers of a causal language model.

    Raises:
        ValueError: the model is not built as Llama and its like are.
    """
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if not layers:
        raise ValueError(
            f"{type(model).__name__} is not supported: its decoder has no layers[i].self_attn"
        )
    for index, layer in enumerate(layers):
        if not hasattr(layer, "self_attn"):
            parts = ", ".join(name for name, _ in layer.named_children())
            raise ValueError(
                f"{type(model).__name__} is not supported: its decoder has no layers[i].self_attn "
                f"at i = {index}, but {parts}"
            )
    return layers


def linear(layer: Any, name: str) -> Any:
    """One of a decoder layer's linear maps by its attribute name, e.g. ``q_proj``.

    Raises:
        ValueError: the layer has no such map.
    """
    for part in (layer.self_attn, getattr(layer, "mlp", None)):
        if hasattr(part, name):
            return getattr(part, name)
    raise ValueError(f"{type(layer).__name__} has no linear map {name!r}")
