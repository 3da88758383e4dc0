"""Temporarily replaces methods of a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_THREAD = "lookaheadkv_thread"


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
