"""What is attached to a model: two hooks on its decoder, which act on evictable caches alone.

While a pass runs on an evictable cache, the name of the decoder's attention is ours; at any other
moment it is the model's own, so that whatever asks for the name finds what it always did.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from .attention import PREFIX, attach, detach, register
from .cache import EvictableCache
from .owner import Owner
from .positions import counted_positions
from .structure import decoder_of


class _State:
    """Who is attached to a decoder, and how many passes run on evictable caches."""

    def __init__(self, decoder: nn.Module) -> None:
        self.users: WeakSet[Any] = WeakSet()
        configs = (getattr(module, "config", None) for module in decoder.modules())
        self._configs: list[Any] = list(
            {id(c): c for c in configs if hasattr(c, "_attn_implementation_internal")}.values()
        )
        self._lock = threading.Lock()
        self._passes = 0
        self._own: list[str] = []

    def enter(self) -> None:
        """A pass on an evictable cache begins.

        Raises:
            ValueError: the model was set to an attention that is not supported.
        """
        with self._lock:
            if self._passes == 0:
                self._own = [config._attn_implementation for config in self._configs]
                self._name([_ours(own) for own in self._own])
            self._passes += 1

    def leave(self) -> None:
        """It has ended."""
        with self._lock:
            self._passes -= 1
            if self._passes == 0:
                self._name(self._own)

    def _name(self, names: list[str]) -> None:
        for config, name in zip(self._configs, names, strict=True):
            config._attn_implementation_internal = name


class _Depths(threading.local):
    """How many evictable passes of each decoder, by its id, this thread is in."""

    def __init__(self) -> None:
        self.of: dict[int, int] = {}


_STATES: WeakKeyDictionary[nn.Module, _State] = WeakKeyDictionary()
_DEPTHS = _Depths()
_REGISTERED: set[str] = set()  # names of ours that transformers knows


def _ours(base: str) -> str:
    name = base if base.startswith(PREFIX) else PREFIX + base
    if name not in _REGISTERED:
        _REGISTERED.add(register(base))
    return name


def _state(decoder: nn.Module) -> _State:
    """A copy of an attached model brings its hooks along, and gets a state of its own."""
    if decoder not in _STATES:
        _STATES[decoder] = _State(decoder)
    return _STATES[decoder]


def attach_user(user: object, model: Any) -> None:
    """Evictable caches run on ``model`` until :func:`detach_user`.

    Raises:
        ValueError: the model is not supported; it is as it was before.
    """
    decoder = decoder_of(model)
    before = decoder.config._attn_implementation
    base = attach(model)  # which checks that the model attends through transformers' interface
    if before != decoder.config._attn_implementation:
        detach(model, base)
    if before_pass not in decoder._forward_pre_hooks.values():
        decoder.register_forward_pre_hook(before_pass, with_kwargs=True)
        decoder.register_forward_hook(after_pass, with_kwargs=True, always_call=True)
    _state(decoder).users.add(user)


def detach_user(user: object, model: Any) -> None:
    """Undo :func:`attach_user`; the hooks stay while another user is attached."""
    decoder = decoder_of(model)
    state = _state(decoder)
    state.users.discard(user)
    if state.users:
        return
    for hooks in (decoder._forward_pre_hooks, decoder._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook in (before_pass, after_pass)]:
            del hooks[key]
    for flags in (
        decoder._forward_pre_hooks_with_kwargs,
        decoder._forward_hooks_with_kwargs,
        decoder._forward_hooks_always_called,
    ):
        alive = (*decoder._forward_pre_hooks, *decoder._forward_hooks)
        for key in [key for key in flags if key not in alive]:
            del flags[key]


def is_user(user: object, model: Any) -> bool:
    """Whether ``user`` is attached to ``model``."""
    state = _STATES.get(decoder_of(model))
    return state is not None and user in state.users


def own_cache(cache: EvictableCache, decoder: Any) -> None:
    """Check that the cache is this decoder's, or make it so if it is nobody's.

    Raises:
        ValueError: it is another model's, or its entries have other sizes.
    """
    model = Owner.of(decoder)
    if cache.owner is not None:
        cache.owner.check(model)
    found = [(layer.keys.shape[1], layer.keys.shape[3]) for layer in cache.layers]
    expected = [(model.num_kv_heads, model.head_dim)] * model.num_layers
    if found and found != expected:
        raise ValueError(
            f"the cache is of another model: it has {len(found)} layers of (KV heads, dimensions) "
            f"{sorted(set(found))}; the model has {len(expected)} of {expected[0]}"
        )
    cache.owner = model


def check_autocast(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse an autocast that would give the ops tensors of two dtypes.

    Raises:
        RuntimeError: names both dtypes.
    """
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return
    cast = torch.get_autocast_dtype(kind)
    if cast != dtype:
        raise RuntimeError(
            f"torch.autocast({kind!r}, {cast}) is on and the model is in {dtype}: eviction's ops "
            f"refuse mixed dtypes; load the model with dtype={cast} instead"
        )


def before_pass(
    decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """A forward pre-hook: checks an evictable cache, counts positions, switches attention."""
    cache = _evictable(args, kwargs)
    if cache is None:
        return None
    names = list(inspect.signature(decoder.forward).parameters) if args else []
    named = {**dict(zip(names, args, strict=False)), **kwargs}
    _prepare(decoder, cache, named)
    _state(decoder).enter()
    _DEPTHS.of[id(decoder)] = _DEPTHS.of.get(id(decoder), 0) + 1
    return (), named


def after_pass(
    decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
) -> None:
    """A forward hook, which runs after errors, too: gives the model its own attention back."""
    if _evictable(args, kwargs) is None:
        return
    depth = _DEPTHS.of.pop(id(decoder), 0)
    if depth == 0:  # an error came before the pass began
        return
    if depth > 1:
        _DEPTHS.of[id(decoder)] = depth - 1
    _state(decoder).leave()


def _evictable(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> EvictableCache | None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, EvictableCache):
            return value
    return None


def _prepare(decoder: Any, cache: EvictableCache, arguments: dict[str, Any]) -> None:
    """Check a pass, and give its tokens positions where the caller gave none."""
    own_cache(cache, decoder)
    ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
    tokens = embeds if ids is None else ids
    if not isinstance(tokens, Tensor) or tokens.dim() < 2:
        return  # the model's own complaint is the better one
    check_autocast(tokens.device, decoder.dtype)
    rows = cache.num_rows()
    batch, length = tokens.shape[:2]
    if rows is not None and rows != batch:
        name = "inputs_embeds" if ids is None else "input_ids"
        raise ValueError(f"{name} has {batch} rows, the cache {rows}")
    if arguments.get("position_ids") is not None:
        return
    mask = arguments.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] < length:
        mask = None
    elif length == 1 and mask.shape[1] > 1:
        mask = None  # a token that was just written is real
    else:
        mask = mask[:, -length:] != 0
    seen = cache.row_lengths()
    if seen is not None or mask is not None:
        arguments["position_ids"] = counted_positions(mask, batch, length, seen, tokens.device)
