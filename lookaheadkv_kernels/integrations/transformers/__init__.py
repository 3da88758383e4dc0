"""LookaheadKV in transformers: attach a policy to a model, then prefill, generate or evict."""

from .cache import EvictableCache
from .eviction import Eviction, LookaheadKV
from .runner import Prefilled

__all__ = ["EvictableCache", "Eviction", "LookaheadKV", "Prefilled"]
