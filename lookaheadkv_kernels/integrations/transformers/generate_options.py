"""Arguments of `model.generate` and `model.forward` that eviction refuses, and why."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from transformers.utils import TransformersKwargs

from .padding import option_of

_NO_CROP = "assisted generation takes tokens back, which an evicted cache cannot"
_NO_DETAILS = "the kernels give none, and lookahead rows would be among them"

# Options of `generate`: the values that eviction can serve, and why it refuses all others.
SERVED: dict[str, tuple[tuple[Any, ...], str]] = {
    "use_cache": ((True,), "without a cache there is nothing to evict"),
    "prefill_chunk_size": ((), "every chunk would be a prompt; attach with chunk= instead"),
    "cache_implementation": (("dynamic",), "eviction brings its own cache"),
    "cache_config": ((), "eviction brings its own cache"),
    "max_cache_len": ((), "it sizes a static cache, and eviction brings its own"),
    "assistant_model": ((), _NO_CROP),
    "prompt_lookup_num_tokens": ((), _NO_CROP),
    "assistant_early_exit": ((), _NO_CROP),
    "use_mtp": ((False,), _NO_CROP),
    "is_assistant": ((False,), _NO_CROP),
    "guidance_scale": ((1,), "it runs the model a second time, on a prompt of its own"),
    "penalty_alpha": ((0,), "contrastive search takes tokens back, which an evicted cache cannot"),
    "dola_layers": ((), "it needs the hidden states of all layers"),
    "output_attentions": ((False,), _NO_DETAILS),
    "output_hidden_states": ((False,), _NO_DETAILS),
    "logits_to_keep": ((1,), "a prompt has the logits of its last token alone"),
}

# What a prompt's forward may get beside its cache; any other would be ignored silently.
PROMPT_ARGUMENTS = {
    "input_ids",
    "attention_mask",
    "position_ids",
    "inputs_embeds",
    "use_cache",
    "logits_to_keep",
    "return_dict",
}


def check_generate(model: Any, options: Mapping[str, Any]) -> None:
    """Refuse options of ``model.generate`` that would bypass eviction.

    Args:
        model: its generation config counts, too.
        options: all arguments by name.

    Raises:
        ValueError: an option has a value that eviction cannot serve.
    """
    for name, (served, reason) in SERVED.items():
        value = option_of(model, options, name)
        if value is not None and not any(_is(value, one) for one in served):
            raise ValueError(
                f"{name}={_shown(value)} is not available while eviction is on: {reason}"
            )


def _is(value: object, served: object) -> bool:
    """Whether a value is the served one; a tensor is none, and has no truth value."""
    return isinstance(value, bool | int | float | str) and value == served


def _shown(value: object) -> str:
    return repr(value if isinstance(value, bool | float | int | str) else type(value).__name__)


def read_by_model(forward: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `generate`'s arguments for a forward that a model could read.

    `generate` also hands on what it alone reads, such as a tokenizer; what nobody reads it refuses.
    """
    read = {*inspect.signature(forward).parameters, *TransformersKwargs.__optional_keys__}
    return {name: value for name, value in arguments.items() if name in read}


def check_forward(model: Any, arguments: Mapping[str, Any], cache: str) -> None:
    """Refuse a prompt's forward with arguments that eviction would ignore.

    Args:
        model: its config counts, too.
        arguments: by name.
        cache: name of the cache's argument.

    Raises:
        ValueError: names the argument.
    """
    keep = arguments.get("logits_to_keep", 0)
    if not isinstance(keep, int) or keep != 1:
        raise ValueError(
            "while eviction is on, a prompt has the logits of its last token alone: pass "
            f"logits_to_keep=1, got {keep}"
        )
    for option in ("use_cache", "return_dict"):
        if arguments.get(option) is False:
            raise ValueError(f"{option}=False is not available while eviction is on")
    for option, value in arguments.items():
        # By identity: a tensor has no truth value.
        nothing = value is None or value is False or (isinstance(value, dict) and not value)
        if option not in {*PROMPT_ARGUMENTS, cache} and not nothing:
            raise ValueError(
                f"{option} is not available while eviction is on: a prompt takes "
                f"{', '.join(sorted(PROMPT_ARGUMENTS))} and a cache alone"
            )
    for option in ("output_attentions", "output_hidden_states"):
        if getattr(model.config, option, None) and arguments.get(option) is None:
            raise ValueError(
                f"config.{option}=True is not available while eviction is on: {_NO_DETAILS}"
            )
