"""The package's one logger: what users should know, and did not ask for, goes through it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# No handler: where the application has none either, Python prints warnings and errors to stderr.
logger = logging.getLogger("lookaheadkv_kernels")


@contextmanager
def shown() -> Iterator[None]:
    """Within the block the messages appear on stderr, as the commands want them."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
