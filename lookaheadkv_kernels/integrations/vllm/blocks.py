"""How many blocks an eviction frees: arithmetic that scheduler and worker do alike.

Survivors are moved to the end of the prompt's slots, so that whole blocks at its front become free
and every position that comes later keeps its slot. What is kept thus rounds up to the block grid.
"""

from __future__ import annotations


def evicted_blocks(num_prompt: int, budget: int, block_size: int) -> int:
    """Leading blocks of a request that are free once its prompt was cut to ``budget`` entries."""
    return max(0, num_prompt - budget) // block_size


def kept_entries(num_prompt: int, budget: int, block_size: int) -> int:
    """Entries that stay of a prompt: ``budget``, and what its first kept block has room for."""
    return num_prompt - evicted_blocks(num_prompt, budget, block_size) * block_size


def held_blocks(num_tokens: int, num_prompt: int, budget: int, block_size: int) -> int:
    """Blocks of a request that has ``num_tokens`` tokens in the cache, its prompt cut."""
    return -(-num_tokens // block_size) - evicted_blocks(num_prompt, budget, block_size)
