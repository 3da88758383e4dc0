"""Translates vLLM's configuration into the plain values that ``refusals.py`` checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

from .config import EvictionConfig
from .refusals import EngineFacts, LayerFacts


def facts_of(
    vllm_config: Any,
    config: EvictionConfig,
    kv_cache_spec: Any,
    layers: Mapping[str, Any],
    isa: str,
) -> EngineFacts:
    """An engine as its attention builder sees it.

    Args:
        vllm_config: the engine's.
        config: the plugin's options.
        kv_cache_spec: spec of the builder's group.
        layers: the group's attention layers.
        isa: instruction set of the attention kernels.
    """
    parallel = vllm_config.parallel_config
    cache = vllm_config.cache_config
    with_cache = get_layers_from_vllm_config(vllm_config, AttentionLayerBase)
    return EngineFacts(
        prefix_caching=bool(cache.enable_prefix_caching),
        mla=bool(vllm_config.model_config.use_mla),
        speculative=vllm_config.speculative_config is not None,
        kv_connector=vllm_config.kv_transfer_config is not None,
        kv_events=vllm_config.kv_events_config is not None,
        pipeline_parallel=parallel.pipeline_parallel_size,
        tensor_parallel=parallel.tensor_parallel_size,
        context_parallel=max(
            parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size
        ),
        cache_dtype=cache.cache_dtype,
        isa=isa,
        block_size=cache.block_size,
        kernel_block_size=kv_cache_spec.block_size,
        policy=config.policy,
        lora=vllm_config.lora_config is not None,
        other_layers=tuple(sorted(set(with_cache) - set(layers))),
        layers=tuple(_layer_facts(name, layer.impl) for name, layer in layers.items()),
    )


def _layer_facts(name: str, impl: Any) -> LayerFacts:
    return LayerFacts(
        name=name,
        kind=impl.attn_type,
        sliding_window=impl.sliding_window not in (None, -1),
        alibi=impl.alibi_slopes is not None,
        softcap=bool(impl.logits_soft_cap),
        sinks=impl.sinks is not None,
        shares_cache=impl.kv_sharing_target_layer_name is not None,
    )
