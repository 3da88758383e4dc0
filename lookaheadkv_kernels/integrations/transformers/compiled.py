"""Models that were compiled: what a trace cannot hold runs as it is written.

A compiled model is traced once, and later calls run the trace. Hooks and methods that come and go
would be missing from it, or stay in it, without a word; and what a cache stores changes with every
token. Both therefore run outside of traces.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class _Blocks:
    """How many blocks are open in all threads; the first and the last switch the compiler."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        self.stance: AbstractContextManager[object] | None = None


_BLOCKS = _Blocks()


@contextmanager
def uncompiled() -> Iterator[None]:
    """A block in which compiled modules run as they are written, hooks included.

    The switch is torch's own and holds for all threads, whose results it does not change.
    """
    with _BLOCKS.lock:
        if _BLOCKS.count == 0:
            _BLOCKS.stance = torch.compiler.set_stance("force_eager")
            _BLOCKS.stance.__enter__()
        _BLOCKS.count += 1
    try:
        yield
    finally:
        with _BLOCKS.lock:
            _BLOCKS.count -= 1
            if _BLOCKS.count == 0 and _BLOCKS.stance is not None:
                _BLOCKS.stance.__exit__(None, None, None)


def as_written(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which a trace calls instead of tracing it."""
    outside: Callable[P, R] = torch.compiler.disable(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return outside(*args, **kwargs)
        return function(*args, **kwargs)

    return call
