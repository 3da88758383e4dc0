"""Eviction policies, one a file, on the project's ops; they know no model library."""

from .base import Budget, Kept, LayerCall, Policy
from .full import FullCache
from .lookahead import LookaheadPolicy
from .snapkv import SnapKV

__all__ = ["Budget", "FullCache", "Kept", "LayerCall", "LookaheadPolicy", "Policy", "SnapKV"]
