"""Which models eviction serves, decided from their structure before anything is attached."""

from __future__ import annotations

import inspect
import re
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ...lookahead import LookaheadModules
from .call_source import check_source
from .compat import cache_argument, decoder_layers, linear

# Attributes by which layers look at the output of an encoder.
CROSS_ATTENTION = ("encoder_attn", "cross_attn", "crossattention", "cross_attention")
# Modules that carry a state from token to token, which eviction cannot take entries out of.
RECURRENT = re.compile(
    "Mamba|DeltaNet|Recurrent|R(WKV|wkv)|SSM|ShortConv|LightningAttention|LinearAttention"
)
LEAST_HEAD_DIM, MOST_HEAD_DIM = 8, 256


def decoder_of(model: Any) -> Any:
    """The part of a model whose layers hold the cache, with the config that describes it."""
    return model.get_decoder()


def check_supported(model: Any) -> None:
    """Refuse models that eviction would get wrong, and say which part of them is the reason.

    Raises:
        ValueError: the model is not a causal decoder with full attention in every layer, or its
            attention asks for something that eviction does not know.
    """
    owner = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        # Wrappers (PEFT, torch.compile) have a forward of their own, which eviction does not see.
        raise ValueError(f"{owner} is not a transformers model")
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"{owner} is not supported: it is an encoder-decoder model")
    decoder = decoder_of(model)
    if not isinstance(decoder, PreTrainedModel):
        raise ValueError(f"{owner} is not supported: it has no decoder of transformers' kind")
    try:
        _check_config(decoder.config)
        layers = decoder_layers(model)
        for index, layer in enumerate(layers):
            _check_layer(index, layer, decoder.config)
        _check_arguments(model, decoder)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(owner) else f"{owner}: {text}") from error


def check_linears(model: Any, modules: LookaheadModules) -> None:
    """Refuse lookahead modules whose LoRA finds no linear map of its size in the model.

    Raises:
        ValueError: a layer has no such map, or one of another size.
    """
    layers = decoder_layers(model)
    for index, name, *sizes in modules.config.loras():
        part = linear(layers[index], name)
        found = [getattr(part, size, None) for size in ("in_features", "out_features")]
        if found != [None, None] and found != sizes:
            raise ValueError(
                f"{type(model).__name__}: layers[{index}] maps {found[0]} to {found[1]} by {name}, "
                f"the lookahead modules are for {sizes[0]} to {sizes[1]}"
            )


def _check_config(config: Any) -> None:
    if getattr(config, "kv_lora_rank", None) is not None:
        raise ValueError(
            f"multi-head latent attention (kv_lora_rank={config.kv_lora_rank}) is not supported: "
            "its cache holds one latent vector for all heads"
        )
    if getattr(config, "add_cross_attention", False):
        raise ValueError("cross-attention (add_cross_attention=True) is not supported")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(f"only full attention is supported, got {kinds}")
    if getattr(config, "num_kv_shared_layers", 0):
        raise ValueError(
            f"num_kv_shared_layers={config.num_kv_shared_layers} is not supported: these layers "
            "attend to the entries of others"
        )
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in (ropes, *(part for part in ropes.values() if isinstance(part, dict))):
        if "mrope_section" in rope:
            raise ValueError(
                f"mrope_section={rope['mrope_section']} is not supported: positions have three axes"
            )


def _check_arguments(model: Any, decoder: Any) -> None:
    """The model must take what a prompt's pass gives it; others go astray in ``**kwargs``."""
    inputs = {"input_ids", "inputs_embeds", "attention_mask", "position_ids"}
    for part, more in ((model, {"logits_to_keep"}), (decoder, set())):
        taken = set(inspect.signature(part.forward).parameters)
        if missing := sorted((inputs | more | {cache_argument(part)}) - taken):
            raise ValueError(
                f"{type(part).__name__}.forward takes no {', '.join(missing)}, which eviction needs"
            )


def _check_layer(index: int, layer: nn.Module, config: Any) -> None:
    attention: Any = layer.self_attn
    place, kind = f"layers[{index}]", type(attention).__name__
    for name in CROSS_ATTENTION:
        if getattr(layer, name, None) is not None:
            raise ValueError(f"{place} is not supported: cross-attention ({name})")
    for name, module in layer.named_modules():
        if isinstance(module, nn.Conv1d) or RECURRENT.search(type(module).__name__):
            raise ValueError(
                f"{place}.{name} is not supported: a {type(module).__name__} carries a state from "
                "token to token"
            )
    if getattr(attention, "is_causal", True) is False:
        raise ValueError(f"{place}: {kind} attends with is_causal=False: only causal attention")
    if getattr(attention, "is_kv_shared_layer", False):
        raise ValueError(f"{place} is not supported: it attends to the entries of another layer")
    # Where a config has types of layers, these say which of them have its window: none here.
    window = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
    if window is not None and not getattr(config, "layer_types", None):
        raise ValueError(f"{place}: sliding_window={window} is not supported")
    dim = getattr(attention, "head_dim", None)
    if dim is not None and not (LEAST_HEAD_DIM <= dim <= MOST_HEAD_DIM and dim % 8 == 0):
        raise ValueError(
            f"{place}: head_dim={dim} is not supported: it must be a multiple of 8 between "
            f"{LEAST_HEAD_DIM} and {MOST_HEAD_DIM}"
        )
    check_source(attention)
