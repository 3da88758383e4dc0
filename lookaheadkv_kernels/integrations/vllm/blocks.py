"""How many blocks an eviction frees: arithmetic that scheduler and worker share.

Survivors are moved to the end of the prompt's slots, so that whole blocks at its front become free
and later positions keep their slots. The number of kept entries thus rounds up to the block grid.
"""

from __future__ import annotations


def evicted_blocks(num_prompt: int, budget: int, block_size: int) -> int:
    """Leading blocks of a request that are free once its prompt is cut to ``budget`` entries."""
    return max(0, num_prompt - budget) // block_size


def kept_entries(num_prompt: int, budget: int, block_size: int) -> int:
    """Entries kept of a prompt: ``budget``, plus those that fit into its first kept block."""
    return num_prompt - evicted_blocks(num_prompt, budget, block_size) * block_size


def held_blocks(num_tokens: int, num_prompt: int, budget: int, block_size: int) -> int:
    """Blocks held by a request with ``num_tokens`` tokens in the cache, after its prompt's cut."""
    return -(-num_tokens // block_size) - evicted_blocks(num_prompt, budget, block_size)
