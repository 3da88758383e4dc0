"""LookaheadKV in transformers: attach a policy to a model, then prefill, generate or evict."""

from .api import Eviction, LookaheadKV
from .cache import EvictableCache
from .prefiller import Prefilled

__all__ = ["EvictableCache", "Eviction", "LookaheadKV", "Prefilled"]
