"""Lookahead rows in vLLM: one pass of the learned rows over a finished prompt's blocks.

vLLM has no room for rows that belong to no request, and needs none: their keys and values are used
within a layer and then forgotten. The pass runs on the modules of the model that vLLM loaded, whose
class is registered as vLLM lets plugins register models; its own forward stays vLLM's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM

from ...lookahead import LookaheadModules, ModelShape, load_modules
from ...ops import lookahead_attention, select
from .config import EvictionConfig
from .pages import Pages

# Attribute of an attention layer: the lookahead rows of its model.
ROWS_ATTRIBUTE = "lookaheadkv_rows"


class LookaheadRows:
    """The learned rows of a model built as vLLM's Llama is.

    Args:
        decoder: the model's ``LlamaModel``.
        modules: embeddings and LoRA.
        pool_kernel: window of the max-pool over the scores.
    """

    def __init__(self, decoder: Any, modules: LookaheadModules, pool_kernel: int) -> None:
        self._decoder = decoder
        self._modules = modules
        self._pool_kernel = pool_kernel

    def choose(
        self, pages: Mapping[str, Pages], blocks: Tensor, num_prompt: int, keep: int
    ) -> dict[str, Tensor]:
        """What each layer keeps of a prompt: int32 [1, Hkv, keep], ascending.

        Args:
            pages: of each attention layer, by name.
            blocks: int32 [n], the request's, in order.
            num_prompt: tokens of the prompt.
            keep: entries per head.
        """
        rows = self._modules.config.num_lookahead
        dtype = next(iter(pages.values())).key.dtype
        positions = torch.arange(num_prompt, num_prompt + rows)
        hidden, residual = self._modules.embeddings.to(dtype), None
        chosen = {}
        for index, layer in enumerate(self._decoder.layers):
            attention = layer.self_attn
            if residual is None:
                residual, hidden = hidden, layer.input_layernorm(hidden)
            else:
                hidden, residual = layer.input_layernorm(hidden, residual)
            query, key, value = self._qkv(index, attention, hidden, positions)
            name = attention.attn.layer_name
            out, _, scores = lookahead_attention(
                query,
                torch.cat([pages[name].keys(blocks, num_prompt), key], dim=2),
                torch.cat([pages[name].values(blocks, num_prompt), value], dim=2),
                scale=attention.scaling,
            )
            chosen[name] = select(scores, keep, pool_kernel=self._pool_kernel)
            if index == len(self._decoder.layers) - 1:
                break  # the rest of the last layer cannot change a score
            out = out[0].transpose(0, 1).flatten(1)
            hidden = attention.o_proj(out)[0] + self._lora(index, ("o_proj",), out)
            hidden, residual = layer.post_attention_layernorm(hidden, residual)
            hidden = self._mlp(index, layer.mlp, hidden)
        return chosen

    def _qkv(
        self, index: int, attention: Any, hidden: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Post-RoPE queries, keys and values [1, H, rows, D]."""
        joined = attention.qkv_proj(hidden)[0]
        joined = joined + self._lora(index, ("q_proj", "k_proj", "v_proj"), hidden)
        query, key, value = joined.split(
            [attention.q_size, attention.kv_size, attention.kv_size], dim=-1
        )
        query, key = attention.rotary_emb(positions, query.contiguous(), key.contiguous())
        query, key, value = (
            flat.reshape(len(positions), -1, attention.head_dim).transpose(0, 1)[None]
            for flat in (query, key, value)
        )
        return query, key, value

    def _mlp(self, index: int, mlp: Any, hidden: Tensor) -> Tensor:
        joined = mlp.gate_up_proj(hidden)[0] + self._lora(index, ("gate_proj", "up_proj"), hidden)
        inner = mlp.act_fn(joined)
        out: Tensor = mlp.down_proj(inner)[0] + self._lora(index, ("down_proj",), inner)
        return out

    def _lora(self, index: int, names: tuple[str, ...], x: Tensor) -> Tensor:
        """What LoRA adds to linear maps that vLLM has joined into one: [rows, their outputs]."""
        shape = self._modules.config.model
        parts = []
        for name in names:
            lora = self._modules.lora(index, name)
            width = shape.linear_size(name)[1]
            parts.append(x.new_zeros(len(x), width) if lora is None else lora(x))
        return torch.cat(parts, dim=-1)


def attach_rows(model: Any, vllm_config: Any) -> None:
    """Give a model's attention layers its lookahead rows, if the engine asks for that policy.

    Raises:
        ValueError: the modules are another model's.
    """
    config = EvictionConfig.of(vllm_config.additional_config)
    if config is None or config.modules is None:
        return
    modules = load_modules(config.modules)
    shape = ModelShape.of(vllm_config.model_config.hf_config)
    if modules.config.model != shape:
        raise ValueError(
            f"lookaheadkv: modules {config.modules!r} are for {modules.config.model}, "
            f"the model is {shape}"
        )
    rows = LookaheadRows(model.model, modules, config.pool_kernel)
    for layer in model.model.layers:
        setattr(layer.self_attn.attn, ROWS_ATTRIBUTE, rows)


class LookaheadLlamaForCausalLM(LlamaForCausalLM):
    """vLLM's Llama, which knows its lookahead rows."""

    def __init__(self, *, vllm_config: Any, prefix: str = "", **options: Any) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, **options)
        attach_rows(self, vllm_config)


class LookaheadMistralForCausalLM(MistralForCausalLM):
    """vLLM's Mistral, which knows its lookahead rows."""

    def __init__(self, *, vllm_config: Any, prefix: str = "", **options: Any) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, **options)
        attach_rows(self, vllm_config)
