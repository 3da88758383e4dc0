"""Temporarily replaces methods of a model, and lists `generate` options that eviction refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_THREAD = "lookaheadkv_thread"

_NO_CROP = "assisted generation takes tokens back, which an evicted cache cannot"

# Options of `generate`: the values that eviction can serve, and why it refuses all others.
SERVED: dict[str, tuple[tuple[Any, ...], str]] = {
    "use_cache": ((True,), "without a cache there is nothing to evict"),
    "prefill_chunk_size": ((), "every chunk would be a prompt; attach with chunk= instead"),
    "cache_implementation": (("dynamic",), "eviction brings its own cache"),
    "assistant_model": ((), _NO_CROP),
    "prompt_lookup_num_tokens": ((), _NO_CROP),
    "assistant_early_exit": ((), _NO_CROP),
    "guidance_scale": ((1,), "it runs the model a second time, on a prompt of its own"),
}


def check_generate(model: Any, generation_config: Any = None, **options: Any) -> None:
    """Refuse options of ``model.generate`` that would bypass eviction.

    Raises:
        ValueError: an option has a value that eviction cannot serve.
    """
    configs = (generation_config, model.generation_config)
    for name, (served, reason) in SERVED.items():
        places = [getattr(config, name, None) for config in configs]
        value = next((v for v in (options.get(name), *places) if v is not None), None)
        if value is not None and value not in served:
            shown = value if isinstance(value, bool | float | int | str) else type(value).__name__
            raise ValueError(f"{name}={shown!r} is not available while eviction is on: {reason}")


@contextmanager
def replaced(model: Any, **methods: Callable[..., Any]) -> Iterator[None]:
    """Within the block ``model`` has these methods, for all threads; afterwards its own again.

    Raises:
        RuntimeError: another thread is in such a block of the same model: the first to leave
            would remove the other's methods.
    """
    thread = threading.get_ident()
    own = {name: model.__dict__[name] for name in methods if name in model.__dict__}
    for method in own.values():
        if getattr(method, _THREAD, thread) != thread:
            raise RuntimeError("another thread is evicting with this model: take turns")
    for name, method in methods.items():
        setattr(method, _THREAD, thread)
        setattr(model, name, method)
    try:
        yield
    finally:
        for name in methods:
            if name in own:
                setattr(model, name, own[name])
            else:
                delattr(model, name)
