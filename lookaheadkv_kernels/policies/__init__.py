"""Eviction policies, one per file, on the project's ops; they know no model library."""

from __future__ import annotations

from collections.abc import Callable

from .adakv import AdaKV
from .base import Chunk, DraftingPolicy, Kept, LayerCall, Policy, Prefiller, Reading, Watcher
from .budget import Budget
from .full import FullCache
from .h2o import H2O
from .laq import LAQ
from .lookahead import LookaheadPolicy
from .oracle import Oracle
from .pyramidkv import PyramidKV
from .random import RandomPolicy
from .scoring import ScorePolicy
from .snapkv import SnapKV
from .speckv import SpecKV
from .streaming_llm import StreamingLLM

__all__ = [
    "H2O",
    "LAQ",
    "POLICY_NAMES",
    "AdaKV",
    "Budget",
    "Chunk",
    "DraftingPolicy",
    "FullCache",
    "Kept",
    "LayerCall",
    "LookaheadPolicy",
    "Oracle",
    "Policy",
    "Prefiller",
    "PyramidKV",
    "RandomPolicy",
    "Reading",
    "ScorePolicy",
    "SnapKV",
    "SpecKV",
    "StreamingLLM",
    "Watcher",
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


def make_policy(name: str, **options: object) -> Policy:
    """A policy by the name that the command line uses.

    Args:
        name: one of ``POLICY_NAMES``.
        **options: options of its constructor; ``lookahead`` needs ``modules``, ``speckv`` a
            ``draft_model``.

    Raises:
        ValueError: there is no policy of that name.
        TypeError: the policy does not have an option, or one that it needs is missing.
    """
    makers: dict[str, Callable[..., Policy]] = {policy.name: policy for policy in _POLICIES}
    if name in makers:
        return makers[name](**options)
    raise ValueError(f"unknown policy {name!r}; there are {', '.join(POLICY_NAMES)}")
