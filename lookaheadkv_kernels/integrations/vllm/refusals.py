"""The conditions under which eviction is right in an engine, and the texts that refuse others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerFacts:
    """One attention layer."""

    name: str
    kind: str = "decoder"
    sliding_window: bool = False
    alibi: bool = False
    softcap: bool = False
    sinks: bool = False
    shares_cache: bool = False


@dataclass(frozen=True)
class EngineFacts:
    """An engine, in plain values."""

    prefix_caching: bool = False
    mla: bool = False
    speculative: bool = False
    kv_connector: bool = False
    kv_events: bool = False
    pipeline_parallel: int = 1
    tensor_parallel: int = 1
    context_parallel: int = 1
    cache_dtype: str = "auto"
    isa: str = "vec"
    block_size: int = 32
    kernel_block_size: int = 32
    policy: str = "snapkv"
    lora: bool = False
    other_layers: tuple[str, ...] = ()
    layers: tuple[LayerFacts, ...] = ()


def refusals(engine: EngineFacts) -> list[str]:
    """Why prompts of this engine cannot be evicted; empty if they can."""
    checks = {
        "prefix caching shares blocks that eviction overwrites: pass enable_prefix_caching=False": (
            engine.prefix_caching
        ),
        "MLA keeps one latent vector for all heads": engine.mla,
        "speculative decoding takes tokens back": engine.speculative,
        "a KV connector moves blocks that eviction frees": engine.kv_connector,
        "KV events report blocks that eviction changes": engine.kv_events,
        f"pipeline parallelism ({engine.pipeline_parallel}) is not supported": (
            engine.pipeline_parallel > 1
        ),
        f"context parallelism ({engine.context_parallel}) is not supported": (
            engine.context_parallel > 1
        ),
        f"a quantised KV cache ({engine.cache_dtype}) is not supported": (
            engine.cache_dtype not in ("auto", "float32", "bfloat16", "float16", "half")
        ),
        f"the instruction set {engine.isa!r} packs its blocks in an order of its own": (
            engine.isa not in ("vec", "vec16")
        ),
        f"blocks of {engine.block_size} tokens are split into {engine.kernel_block_size}": (
            engine.block_size != engine.kernel_block_size
        ),
        f"{', '.join(engine.other_layers)}: layers with a cache of another kind": bool(
            engine.other_layers
        ),
        f"policy 'lookahead' with tensor parallelism ({engine.tensor_parallel})": (
            engine.policy == "lookahead" and engine.tensor_parallel > 1
        ),
        "policy 'lookahead' with LoRA adapters": engine.policy == "lookahead" and engine.lora,
    }
    found = [reason for reason, holds in checks.items() if holds]
    for layer in engine.layers:
        own = {
            f"attention of kind {layer.kind!r}": layer.kind != "decoder",
            "a sliding window": layer.sliding_window,
            "ALiBi": layer.alibi,
            "a softcap": layer.softcap,
            "attention sinks": layer.sinks,
            "the cache of another layer": layer.shares_cache,
        }
        found += [f"layer {layer.name} has {reason}" for reason, holds in own.items() if holds]
    return found


def check(engine: EngineFacts) -> None:
    """Refuse an engine whose prompts cannot be evicted.

    Raises:
        ValueError: naming every reason.
    """
    if found := refusals(engine):
        raise ValueError("lookaheadkv cannot evict in this engine: " + "; ".join(found))
