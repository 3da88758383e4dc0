"""LookaheadKV in vLLM: a plugin that evicts after the prefill and frees whole blocks.

After installation it does nothing until an engine asks for it::

    LLM(model, enable_prefix_caching=False,
        additional_config={"lookaheadkv": {"policy": "snapkv", "budget": 1024}})

docs/engines/vllm.md says how it works and what it refuses. Importing this package needs no vLLM.
"""

from .blocks import evicted_blocks, held_blocks, kept_entries
from .config import EvictionConfig
from .plugin import SUPPORTED_VLLM, register

__all__ = [
    "SUPPORTED_VLLM",
    "EvictionConfig",
    "evicted_blocks",
    "held_blocks",
    "kept_entries",
    "register",
]
