"""Ctrl-C and requests to end: they take effect where nothing is half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What asks a process to end and lets it: Ctrl-C, a scheduler's kill, a closed terminal.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A request to end, and what was saved before it was followed.

    Attributes:
        saved: what is kept of the work, as a clause; empty: nothing had to be saved.
        number: of the signal.
    """

    def __init__(self, saved: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(saved)
        self.saved = saved
        self.number = number


def number_of(interrupt: KeyboardInterrupt) -> int:
    """The signal behind an exception; Python's own exception for Ctrl-C does not say it."""
    return interrupt.number if isinstance(interrupt, Interrupted) else int(signal.SIGINT)


@contextmanager
def raised() -> Iterator[None]:
    """Within the block all of :data:`SIGNALS` raise, as Ctrl-C does in any case.

    A signal that is ignored (nohup) or has a handler already keeps it.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number=number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: kept for number, kept in before.items() if kept is signal.SIG_DFL}
    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class HeldBack:
    """Signals that came while they were held back."""

    def __init__(self) -> None:
        self.waiting: list[int] = []


@contextmanager
def held_back() -> Iterator[HeldBack]:
    """Within the block nothing is interrupted; what came in the meantime takes effect at its end.

    Code that can stop early may look at what is ``waiting``. Only the main thread gets signals, so
    in any other the block changes nothing.
    """
    held = HeldBack()
    if threading.current_thread() is not threading.main_thread():
        yield held
        return

    def note(number: int, frame: FrameType | None) -> None:
        held.waiting.append(number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    # A handler that Python did not install is unknown (None) and could not be put back.
    before = {n: handler for n, handler in before.items() if callable(handler)}
    for number in before:
        signal.signal(number, note)
    try:
        yield held
    except KeyboardInterrupt:
        held.waiting.clear()  # it has taken effect
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for came in held.waiting[:1]:
            handler = before[signal.Signals(came)]
            assert callable(handler)
            handler(came, None)
