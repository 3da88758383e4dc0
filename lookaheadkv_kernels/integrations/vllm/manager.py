"""The scheduler's side: a cache spec whose manager frees the blocks that eviction empties."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from .blocks import evicted_blocks


@dataclass(frozen=True, kw_only=True)
class EvictingSpec(FullAttentionSpec):
    """Full attention over a cache that loses entries after the prefill."""

    budget: int

    @classmethod
    def of(cls, spec: FullAttentionSpec, budget: int) -> EvictingSpec:
        """``spec`` with a budget."""
        return cls(**{f.name: getattr(spec, f.name) for f in fields(spec)}, budget=budget)

    @classmethod
    def merge(cls, specs: list[Any]) -> EvictingSpec:
        """One spec for all layers of a group."""
        budgets = {spec.budget for spec in specs}
        if len(budgets) != 1:
            raise ValueError(f"layers of a group have different budgets: {sorted(budgets)}")
        return cls.of(FullAttentionSpec.merge(specs), budgets.pop())


class EvictingManager(FullAttentionManager):
    """Frees a request's leading blocks as soon as its prompt is processed.

    The worker moves the kept entries out of them at the start of the next step, before any block
    is written (``evict.py``), so another request can get them in that same step.
    """

    def remove_skipped_blocks(
        self,
        request_id: str,
        processed_computed_tokens: int,
        num_prompt_tokens: int | None = None,
    ) -> None:
        """Free what eviction empties, once all prompt tokens are processed."""
        if num_prompt_tokens is None or processed_computed_tokens < num_prompt_tokens:
            return
        emptied = evicted_blocks(num_prompt_tokens, self.kv_cache_spec.budget, self.block_size)
        self._remove_blocks_in_range(request_id, 0, emptied)

    def get_num_common_prefix_blocks(self, running_request_id: str) -> int:
        """No blocks are shared."""
        return 0


KVCacheSpecRegistry.check_kv_cache_spec_registry({})  # vLLM's own kinds first, or never
KVCacheSpecRegistry.register(EvictingSpec, EvictingManager, FullAttentionSpec)
