"""Tiny random models of the supported kinds, and a slow LookaheadKV of which no line is ours.

Lookahead tokens are new entries of a copy's vocabulary and LoRA sits in linear maps of its own, so
that one dense run of ``prompt + lookahead tokens`` gives the queries and keys to score with.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from lookaheadkv_kernels.python_ref import score_and_evict
from support.policy_model import Cut, DenseModel, Heads
from support.tiny_model import TINY_SIZES
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lookaheadkv_kernels.integrations.transformers import EvictableCache, LookaheadKV
from lookaheadkv_kernels.lookahead import LookaheadConfig, LookaheadModules, ModelShape

VOCABULARY = 97
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
}


def tiny(kind: str = "llama", heads: int = 6, kv_heads: int = 2, **options: Any) -> Any:
    """Weights large enough for attention to be far from uniform; always the same ones."""
    torch.manual_seed(0)
    config, model, own = KINDS[kind]
    sizes = TINY_SIZES | {
        "vocab_size": VOCABULARY,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 2048,
        "initializer_range": 0.12,
        "eos_token_id": None,
    }
    return model(config(**(sizes | own | options))).eval()


def modules_of(model: Any, num_lookahead: int = 4) -> LookaheadModules:
    """Modules none of whose weights is zero."""
    config = LookaheadConfig(ModelShape.of(model.config), num_lookahead=num_lookahead, lora_rank=2)
    modules = LookaheadModules(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in modules.parameters():
        parameter.normal_(std=0.15, generator=generator)
    return modules


def attached(model: Any, **options: Any) -> LookaheadKV:
    """LookaheadKV with the modules above."""
    return LookaheadKV(model, modules_of(model), **options)


def text(length: int, seed: int = 0) -> Tensor:
    """[1, length] token ids, none of them special."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(3, VOCABULARY, (1, length), generator=generator)


def kept_heads(cache: EvictableCache, row: int = 0) -> list[Heads]:
    """Positions that each layer and head kept at the last eviction."""
    return [
        [[p for p in head if p >= 0] for head in layer.kept_positions[row].tolist()]
        for layer in cache.layers
    ]


class _WithLora(nn.Module):
    def __init__(self, base: nn.Linear, down: Tensor, up: Tensor, scaling: float, rows: int):
        super().__init__()
        self.base, self.down, self.up, self.scaling, self.rows = base, down, up, scaling, rows

    def forward(self, x: Tensor) -> Tensor:
        last = x[:, -self.rows :]
        extra = last @ self.down.T @ self.up.T * self.scaling
        return torch.cat([self.base(x)[:, : -self.rows], self.base(last) + extra], dim=1)


class SlowLookahead:
    """What LookaheadKV keeps of a text, layer by layer and head by head."""

    def __init__(self, model: Any, modules: LookaheadModules) -> None:
        model = copy.deepcopy(model)
        config = modules.config
        self.rows = config.num_lookahead
        words = model.get_input_embeddings().weight
        embedding = nn.Embedding(len(words) + self.rows, config.model.hidden_size)
        embedding.weight = nn.Parameter(torch.cat([words.detach(), modules.embeddings.detach()]))
        model.set_input_embeddings(embedding)
        for index, name, _, _ in config.loras():
            lora, layer = modules.lora(index, name), model.model.layers[index]
            part = layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp
            weights = (lora.lora_A.weight, lora.lora_B.weight, config.lora_alpha / config.lora_rank)
            setattr(part, name, _WithLora(getattr(part, name), *weights, self.rows))
        self.dense = DenseModel(model)

    def kept(
        self, tokens: Sequence[int], budgets: int | Sequence[int], cuts: Sequence[Cut] = ()
    ) -> list[Heads]:
        """Kept positions [layer][head] of ``tokens`` after earlier ``cuts``."""
        length = len(tokens)
        ahead = range(VOCABULARY, VOCABULARY + self.rows)
        run = self.dense.run([*tokens, *ahead], cuts)
        if isinstance(budgets, int):
            budgets = [budgets] * self.dense.num_layers
        chosen = []
        for layer, budget in enumerate(budgets):
            group = run.query[layer].shape[0] // run.key[layer].shape[0]
            heads = []
            for head, key in enumerate(run.key[layer]):
                there = list(range(length))
                for cut in cuts:
                    there = [j for j in there if j >= cut.length or j in cut.kept[layer][head]]
                slots = torch.tensor([*there, *range(length, length + self.rows)])
                query = run.query[layer][head * group : (head + 1) * group, -self.rows :]
                key = key[slots][None, None]
                picked = score_and_evict(query[None], key, key, budget).indices
                heads.append([there[i] for i in picked[0, 0].tolist()])
            chosen.append(heads)
        return chosen


def continue_greedily(lkv: Any, cache: EvictableCache, ids: Tensor, count: int) -> list[list[int]]:
    """Tokens of a hand-written decoding loop on a prefilled cache."""
    positions = cache.row_lengths()
    token = cache.logits.argmax(dim=-1)
    out = [token]
    for step in range(count - 1):
        with torch.no_grad():
            logits = lkv.model(
                input_ids=token[:, None],
                position_ids=(positions + step)[:, None],
                **{lkv.runner._cache_argument: cache},
            ).logits
        token = logits[:, -1].argmax(dim=-1)
        out.append(token)
    return torch.stack(out, dim=1).tolist()
