"""A call of `model.generate` within an `evicting` block: its prompt left-padded, its cache checked.

`generate` counts positions and masks by itself, which is right for left-padded prompts that no
cache has seen in another order. So the prompt is brought into that form here, with positions from
the cache, and `generate` only goes on counting.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .cache import EvictableCache
from .checks import check_tokens
from .padding import explained, inferred_mask, option_of
from .prompt import Prompt, make_prompt

OLD_CACHE_NAME = "past_key_values"
# Arguments for which None means that they are not given; for others it is a value.
TENSORS = ("inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids")


@dataclass
class GenerateCall:
    """What the model's forward must know of the `generate` that calls it.

    Attributes:
        model: whose `generate` it is.
        cache: the user's, or None.
        answer_first: the cache has seen the whole prompt, and its logits give the first token.
        answered: the prompt was run, or answered from the cache.
    """

    model: Any
    cache: EvictableCache | None
    answer_first: bool = False
    answered: bool = False

    def made(self, cache: object) -> bool:
        """Whether ``cache`` is the empty one that this `generate` made for its prompt."""
        return (
            self.cache is None
            and not self.answered
            and isinstance(cache, Cache)
            and not isinstance(cache, EvictableCache)
            and cache.get_seq_length() == 0
        )


_CALL: ContextVar[GenerateCall | None] = ContextVar("lookaheadkv_generate", default=None)


def call_of(model: Any) -> GenerateCall | None:
    """The `generate` of ``model`` that runs in this thread."""
    call = _CALL.get()
    return call if call is not None and call.model is model else None


def named(
    generate: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], cache: str
) -> dict[str, Any]:
    """All arguments of a call by their names; ``cache`` is the name of the cache's."""
    bound = inspect.signature(generate).bind(*args, **kwargs)
    options = {**dict(zip(bound.signature.parameters, bound.args, strict=False)), **bound.kwargs}
    if OLD_CACHE_NAME in options and cache != OLD_CACHE_NAME:
        if options.get(cache) is not None:
            raise ValueError(f"give only one of {cache} and {OLD_CACHE_NAME}")
        options[cache] = options.pop(OLD_CACHE_NAME)
    absent = [name for name in (*TENSORS, cache) if options.get(name, 0) is None]
    return {name: value for name, value in options.items() if name not in absent}


def check_kind(cache: object) -> None:
    """Refuse a cache that eviction did not make.

    Raises:
        ValueError: names its class.
    """
    if cache is not None and not isinstance(cache, EvictableCache):
        raise ValueError(
            f"eviction cannot go on from a {type(cache).__name__}: start without a cache, or "
            "with one that eviction made"
        )


@contextmanager
def generating(model: Any, cache: EvictableCache | None) -> Iterator[GenerateCall]:
    """Within the block :func:`call_of` knows the call; an error gives the cache back as it was."""
    before = None if cache is None else cache.fork()
    call = GenerateCall(model, cache)
    token = _CALL.set(call)
    try:
        yield call
    except BaseException:
        if cache is not None and before is not None:
            cache.adopt(before)
        raise
    finally:
        _CALL.reset(token)


def prepare(model: Any, options: dict[str, Any], cache: EvictableCache | None) -> bool:
    """Bring the options of a `generate` into the form above, in place.

    Args:
        model: whose `generate` is called.
        options: all arguments by name.
        cache: of earlier turns; its rows are repeated for beams and several answers.

    Returns:
        Whether the cache has seen the whole prompt.

    Raises:
        ValueError: a prompt, mask or cache that makes no sense.
    """
    if "inputs" in options:
        if "input_ids" in options:
            raise ValueError("give only one of inputs and input_ids: both are the token ids")
        options["input_ids"] = options.pop("inputs")
    ids, embeds = options.get("input_ids"), options.get("inputs_embeds")
    given = {name: options.get(name) for name in TENSORS if name != "inputs"}
    check_tokens(model, **given)
    whole = embeds if ids is None else ids
    if whole is None:
        return False  # `generate` starts from the model's first token
    made = inferred_mask(model, ids, options) if given["attention_mask"] is None else None
    mask = given["attention_mask"] if made is None else made
    past = 0 if cache is None else cache.get_seq_length()
    new = _num_new(whole, mask, past)
    answer_first = past > 0 and new == 0
    try:
        if answer_first:
            assert cache is not None
            prompt = _seen_prompt(ids, embeds, mask, given["position_ids"], cache)
        else:
            prompt = _new_prompt(ids, embeds, mask, given["position_ids"], cache, new)
    except ValueError as error:
        raise error if made is None else explained(error, model, options) from error
    options["position_ids"] = prompt.position_ids
    if prompt.mask is not None:
        for name, end in (("input_ids", prompt.input_ids), ("inputs_embeds", prompt.inputs_embeds)):
            if end is not None:
                options[name] = _ending_in(options[name], end)
    if mask is not None:
        mask = mask if prompt.mask is None else _ending_in(mask, prompt.mask)
        if not answer_first and mask.shape[1] == new:  # it covers the new tokens alone
            mask = torch.cat([mask.new_ones(len(mask), past), mask], dim=1)
        options["attention_mask"] = mask.long()
    _expand(model, options, cache, prompt.batch)
    return answer_first


def _num_new(tokens: Tensor, mask: Tensor | None, past: int) -> int:
    """How many of ``tokens`` the cache has not seen.

    As in transformers, they are the whole text, unless a longer mask says that they are its end.
    """
    length = tokens.shape[1] if tokens.dim() > 1 else 0
    if past == 0 or (mask is not None and mask.dim() == 2 and mask.shape[1] > length):
        return length
    if length < past:
        raise ValueError(
            f"the prompt has {length} tokens, of which the cache has seen {past}: pass the whole "
            f"text, or new tokens with an attention_mask of {past} + {length}"
        )
    return length - past


def _new_prompt(
    ids: Tensor | None,
    embeds: Tensor | None,
    mask: Tensor | None,
    positions: Tensor | None,
    cache: EvictableCache | None,
    new: int,
) -> Prompt:
    """The tokens that the cache has not seen, left-padded."""
    ids, embeds = (
        t if t is None or t.dim() < 2 else t[:, t.shape[1] - new :] for t in (ids, embeds)
    )
    if positions is not None and positions.shape[-1] > new:
        positions = positions[..., -new:]
    # A fork: the cache itself learns of padding behind answers when the prompt is run.
    fork = None if cache is None else cache.fork()
    return make_prompt(ids, mask, inputs_embeds=embeds, position_ids=positions, cache=fork)


def _seen_prompt(
    ids: Tensor | None,
    embeds: Tensor | None,
    mask: Tensor | None,
    positions: Tensor | None,
    cache: EvictableCache,
) -> Prompt:
    """A prompt that the cache has seen whole, padded as it was read, with its last positions."""
    prompt = make_prompt(ids, mask, inputs_embeds=embeds)
    lengths = cache.row_lengths()
    assert lengths is not None
    if len(lengths) != prompt.batch:
        raise ValueError(f"the prompt has {prompt.batch} rows, the cache {len(lengths)}")
    if cache.next_logits() is None:
        raise ValueError(
            f"the prompt is empty: the cache has seen all of its {prompt.num_tokens} tokens, and "
            "has gone on since its last prompt; give at least one new token"
        )
    last = lengths.to(prompt.position_ids)[:, None] - 1
    if positions is not None:  # [N], [1, N] or [B, N]
        last = positions.reshape(-1, positions.shape[-1])[:, -1:]
    return Prompt(prompt.input_ids, prompt.inputs_embeds, prompt.mask, last.expand(prompt.batch, 1))


def _ending_in(tensor: Tensor, end: Tensor) -> Tensor:
    """``tensor`` [B, t, ...] with its last tokens replaced by ``end``."""
    return torch.cat([tensor[:, : tensor.shape[1] - end.shape[1]], end.to(tensor)], dim=1)


def _expand(
    model: Any, options: Mapping[str, Any], cache: EvictableCache | None, batch: int
) -> None:
    """Repeat the cache's rows for beams and several answers, as `generate` repeats the prompt's."""
    names = ("num_beams", "num_return_sequences")
    copies = max(int(option_of(model, options, name) or 1) for name in names)
    if cache is not None and copies > 1 and cache.num_rows() == batch:
        cache.batch_repeat_interleave(copies)
