"""Tiny random Llamas, and a dense run of them that can hide cache entries by masks.

The dense run shares no code with the package: it has an attention function of its own, keeps no
cache, and hides what an eviction would have dropped. It also tells each layer's queries and keys.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from support import tiny_model
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "dense_with_cuts"
Heads = list[list[int]]  # kept positions of each KV head


def tiny_llama(kv_heads: int = 2, *, seed: int = 0, layers: int = 3, vocabulary: int = 97) -> Any:
    """6 query heads of 8 dimensions; weights large enough for attention to be far from uniform."""
    return tiny_model.tiny_llama(
        seed,
        vocab_size=vocabulary,
        num_hidden_layers=layers,
        num_key_value_heads=kv_heads,
        initializer_range=0.2,
        eos_token_id=None,
    )


@dataclass
class Cut:
    """An eviction after ``length`` tokens: later rows see only ``kept[layer]`` of those."""

    length: int
    kept: list[Heads]


@dataclass
class Run:
    """What a dense run gave, for one row."""

    logits: Tensor  # [T, vocabulary]
    query: list[Tensor]  # [Hq, T, D] per layer
    key: list[Tensor]  # [Hkv, T, D] per layer


@dataclass
class _State:
    cuts: Sequence[Cut] = ()
    query: list[Tensor] = field(default_factory=list)
    key: list[Tensor] = field(default_factory=list)


_state = _State()


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    length, group = query.shape[2], query.shape[1] // key.shape[1]
    _state.query.append(query[0])
    _state.key.append(key[0])
    visible = torch.ones(length, length, dtype=torch.bool).tril().repeat(key.shape[1], 1, 1)
    for cut in _state.cuts:
        for head, kept in enumerate(cut.kept[module.layer_idx]):
            hidden = [j for j in range(cut.length) if j not in set(kept)]
            visible[head, cut.length :, hidden] = False
    key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
    logits = query @ key.transpose(2, 3) * module.scaling
    logits = logits.masked_fill(~visible.repeat_interleave(group, dim=0), -torch.inf)
    return (logits.softmax(dim=-1) @ value).transpose(1, 2), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, lambda **kwargs: None)


class DenseModel:
    """A copy of a model that always runs all tokens."""

    def __init__(self, model: Any) -> None:
        self.model = copy.deepcopy(model)
        self.model.set_attn_implementation(NAME)
        self.num_layers = model.config.num_hidden_layers

    @torch.no_grad()
    def run(self, tokens: Sequence[int], cuts: Sequence[Cut] = ()) -> Run:
        """Logits, queries and keys of a text, with evictions along the way."""
        global _state
        _state = _State(cuts)
        logits = self.model(torch.tensor([list(tokens)]), use_cache=False).logits[0]
        return Run(logits, _state.query, _state.key)

    def greedy(self, tokens: Sequence[int], count: int, cuts: Sequence[Cut] = ()) -> list[int]:
        """The next ``count`` tokens; the first is chosen before the last of the cuts."""
        text = list(tokens)
        for _ in range(count):
            text.append(int(self.run(text, cuts).logits[-1].argmax()))
        return text[len(tokens) :]
