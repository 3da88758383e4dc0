"""vLLM's CPU attention over a cache whose prompts lose entries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config, get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.kv_cache_interface import FullAttentionSpec

from .config import EvictionConfig
from .evict import Chooser, Evictor, Layer, Watched
from .facts import facts_of
from .lookahead import ROWS_ATTRIBUTE
from .manager import EvictingSpec
from .plugin import ARCHITECTURES
from .refusals import check


class EvictingCPUBackend(CPUAttentionBackend):
    """``CPU_ATTN``; identical to vLLM's unless an engine asks for eviction.

    Attributes:
        config: of the engine that is being made. vLLM makes the layers of one engine and asks for
            their specs before it turns to another, and sets its own configuration only for the
            first of the two.
    """

    config: ClassVar[EvictionConfig | None] = None

    @classmethod
    def customize_spec(cls, spec: Any) -> Any:
        """The layer's cache spec, whose manager frees blocks."""
        if cls.config is None or type(spec) is not FullAttentionSpec:
            return spec
        return EvictingSpec.of(spec, cls.config.budget)

    @staticmethod
    def get_impl_cls() -> type[EvictingCPUImpl]:
        """The implementation that watches queries."""
        return EvictingCPUImpl

    @staticmethod
    def get_builder_cls() -> type[EvictingCPUBuilder]:
        """The builder that evicts."""
        return EvictingCPUBuilder


@dataclass
class EvictingCPUMetadata(CPUAttentionMetadata):
    """vLLM's metadata, and the rows whose queries are remembered."""

    watched: list[Watched] = field(default_factory=list)
    window: int = 0


class EvictingCPUBuilder(CPUAttentionMetadataBuilder):
    """Evicts before a step's metadata is built, so that the metadata describes what is left."""

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.evictor: Evictor | None = None
        config = EvictionConfig.of(vllm_config.additional_config)
        if config is None:
            return
        check(facts_of(vllm_config, config, kv_cache_spec, self._attention_layers(), self.isa))
        self.evictor = Evictor(
            config,
            self.block_size,
            vllm_config.scheduler_config.max_num_seqs,
            self._layers,
            self._chooser() if config.policy == "lookahead" else None,
        )

    def _chooser(self) -> Chooser:
        """The lookahead rows that the model's class left on its layers."""
        layer = next(iter(self._attention_layers().values()))
        rows = getattr(layer, ROWS_ATTRIBUTE, None)
        if rows is None:
            raise ValueError(
                "lookaheadkv cannot evict in this engine: policy 'lookahead' needs one of the "
                f"architectures {', '.join(ARCHITECTURES)} (set it in hf_overrides), the model is "
                f"{', '.join(self.vllm_config.model_config.hf_config.architectures)}"
            )
        chooser: Chooser = rows.choose
        return chooser

    def _attention_layers(self) -> Mapping[str, Any]:
        layers: Mapping[str, Any] = get_layers_from_vllm_config(
            self.vllm_config, Attention, self.layer_names
        )
        return layers

    def _layers(self) -> dict[str, Layer]:
        return {
            name: Layer(layer.kv_cache, layer.impl.scale)
            for name, layer in self._attention_layers().items()
        }

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> Any:
        """Metadata of a step.

        Raises:
            ValueError: a shared prefix, which cascade attention would read.
        """
        if self.evictor is None:
            return super().build(common_prefix_len, common_attn_metadata, fast_build)
        if common_prefix_len > 0:
            raise ValueError(
                f"lookaheadkv: cascade attention over a common prefix of {common_prefix_len} "
                "tokens is not supported"
            )
        step = self.evictor.step(common_attn_metadata)
        changed = common_attn_metadata.replace(
            seq_lens=step.seq_lens, block_table_tensor=step.block_table
        )
        built = super().build(common_prefix_len, changed, fast_build)
        window = self.evictor.config.window
        return EvictingCPUMetadata(**vars(built), watched=step.watched, window=window)


class EvictingCPUImpl(CPUAttentionBackendImpl):
    """vLLM's implementation, which also remembers the newest queries of prompts."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        EvictingCPUBackend.config = EvictionConfig.of(get_current_vllm_config().additional_config)

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attention of one layer."""
        if isinstance(attn_metadata, EvictingCPUMetadata):
            for start, stop, state in attn_metadata.watched:
                state.watch(layer.layer_name, query[start:stop], attn_metadata.window)
        out: Tensor = super().forward(
            layer,
            query,
            key,
            value,
            kv_cache,
            attn_metadata,
            output,
            output_scale,
            output_block_scale,
        )
        return out
