"""Eviction policies, one a file, on the project's ops; they know no model library."""

from __future__ import annotations

from typing import Any

from .adakv import AdaKV
from .base import Budget, Kept, LayerCall, Policy
from .full import FullCache
from .h2o import H2O
from .laq import LAQ
from .lookahead import LookaheadPolicy
from .oracle import Oracle
from .pyramidkv import PyramidKV
from .random import RandomPolicy
from .snapkv import SnapKV
from .speckv import SpecKV
from .streaming_llm import StreamingLLM

__all__ = [
    "H2O",
    "LAQ",
    "POLICY_NAMES",
    "AdaKV",
    "Budget",
    "FullCache",
    "Kept",
    "LayerCall",
    "LookaheadPolicy",
    "Oracle",
    "Policy",
    "PyramidKV",
    "RandomPolicy",
    "SnapKV",
    "SpecKV",
    "StreamingLLM",
    "make_policy",
]

_POLICIES: tuple[type[Policy], ...] = (
    FullCache,
    LookaheadPolicy,
    SnapKV,
    PyramidKV,
    StreamingLLM,
    H2O,
    LAQ,
    SpecKV,
    AdaKV,
    RandomPolicy,
    Oracle,
)

POLICY_NAMES: tuple[str, ...] = tuple(policy.name for policy in _POLICIES)


def make_policy(name: str, **options: Any) -> Policy:
    """A policy by its name, as the command line has it.

    Args:
        name: one of ``POLICY_NAMES``.
        **options: of its constructor; ``lookahead`` needs ``modules``, ``speckv`` a
            ``draft_model``.

    Raises:
        ValueError: there is no policy of that name.
        TypeError: an option that the policy does not have, or one that it needs is missing.
    """
    for policy in _POLICIES:
        if policy.name == name:
            return policy(**options)
    raise ValueError(f"unknown policy {name!r}; there are {', '.join(POLICY_NAMES)}")
