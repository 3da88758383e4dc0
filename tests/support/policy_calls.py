"""Policies on tiny Llamas: what they keep, what their transcriptions in python_ref keep."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from lookaheadkv_kernels.python_ref import policies as ref
from support.policy_model import Cut, DenseModel, Heads, tiny_llama
from torch import Tensor

from lookaheadkv_kernels.integrations.transformers import EvictableCache
from lookaheadkv_kernels.integrations.transformers.compat import cache_argument
from lookaheadkv_kernels.policies import POLICY_NAMES, Policy, make_policy

WINDOW, LAQ_WINDOW, DRAFT = 8, 4, 6
MORE = [11, 5, 60]  # tokens that follow a prompt, whatever the model thinks
TRANSCRIBED = tuple(name for name in POLICY_NAMES if name not in ("full", "lookahead"))


@cache
def target(kv_heads: int) -> Any:
    return tiny_llama(kv_heads)


@cache
def dense(kv_heads: int) -> DenseModel:
    return DenseModel(target(kv_heads))


@cache
def draft_model() -> Any:
    return tiny_llama(3, seed=1, layers=2)


def policy_of(name: str) -> Policy:
    options: dict[str, dict[str, Any]] = {
        "snapkv": {"window": WINDOW},
        "pyramidkv": {"window": WINDOW},
        "adakv": {"window": WINDOW},
        "h2o": {"num_recent": WINDOW},
        "laq": {"window": LAQ_WINDOW, "draft_window": WINDOW, "draft_tokens": DRAFT},
        "speckv": {"window": WINDOW, "draft_model": draft_model(), "draft_tokens": DRAFT},
        "oracle": {"max_tokens": DRAFT},
        "random": {"seed": 3},
    }
    return make_policy(name, **options.get(name, {}))


def transcribed(
    name: str, model: DenseModel, tokens: list[int], cap: int, cuts: tuple[Cut, ...] = ()
) -> list[Heads]:
    """What each layer and head keeps of a text whose last turn begins where the last cut was."""
    n, start = len(tokens), cuts[-1].length if cuts else 0
    draft: list[int] = []
    seen = cuts
    if name == "laq":
        seen = (*cuts, Cut(n, transcribed("snapkv", model, tokens, cap, cuts)))
        draft = model.greedy(tokens, DRAFT, seen)
    elif name == "speckv":
        draft = DenseModel(draft_model()).greedy(tokens, DRAFT)
    elif name == "oracle":
        draft = model.greedy(tokens, DRAFT, seen)
    run = model.run(tokens + draft, seen)
    layers = []
    for layer in range(model.num_layers):
        heads = run.key[layer].shape[0]
        before = cuts[-1].kept[layer] if cuts else [[]] * heads
        places = [kept + list(range(start, n)) for kept in before]
        query = run.query[layer]
        key = torch.stack([run.key[layer][head, place] for head, place in enumerate(places)])
        ahead = run.key[layer][:, n:]
        chosen = _chosen(
            name, layer, model.num_layers, cap, query[:, start:n], key, query[:, n:], ahead
        )
        layers.append(
            [[place[j] for j in kept] for place, kept in zip(places, chosen, strict=True)]
        )
    return layers


def _chosen(
    name: str,
    layer: int,
    num_layers: int,
    cap: int,
    query: Tensor,  # [Hq, q, D]
    key: Tensor,  # [Hkv, S, D]
    draft_query: Tensor,  # [Hq, m, D]
    draft_key: Tensor,  # [Hkv, m, D]
) -> Heads:
    """The kept places among a layer's S entries."""
    both_queries = torch.cat([query, draft_query], dim=1)
    both = torch.cat([key, draft_key], dim=1)
    num_draft = draft_query.shape[1]
    choices: dict[str, Callable[[], Heads]] = {
        "streaming_llm": lambda: ref.streaming_llm(key, cap),
        "random": lambda: ref.random_entries(key, cap, layer, seed=3),
        "snapkv": lambda: ref.snapkv(query, key, cap, WINDOW),
        "pyramidkv": lambda: ref.pyramidkv(query, key, layer, num_layers, cap, WINDOW),
        "h2o": lambda: ref.h2o(query, key, cap, WINDOW),
        "laq": lambda: ref.laq(query[:, -LAQ_WINDOW:], draft_query, key, cap),
        "speckv": lambda: ref.speckv(both_queries, both, cap, num_draft, WINDOW),
        "adakv": lambda: ref.adakv(query, key, cap, WINDOW),
        "oracle": lambda: ref.oracle(draft_query, both, cap),
    }
    return choices[name]()


def kept_by(cache: EvictableCache, row: int = 0) -> list[Heads]:
    """Positions that every layer and head holds of one row."""
    return [
        [[j for j in head if j >= 0] for head in layer.positions()[row].tolist()]
        for layer in cache.layers
    ]


@torch.no_grad()
def decoded(model: Any, cache: EvictableCache, tokens: list[list[int]]) -> Tensor:
    """Logits [B, t, vocabulary] of t more tokens of each row, one after the other."""
    lengths = cache.row_lengths()
    steps = []
    for i, step in enumerate(torch.tensor(tokens).T):
        out = model(
            step[:, None],
            position_ids=(lengths + i)[:, None],
            **{cache_argument(model): cache},
            use_cache=True,
        )
        steps.append(out.logits[:, -1])
    return torch.stack(steps, dim=1)


def text(length: int) -> list[int]:
    return torch.randint(2, 97, (length,)).tolist()


def batch_of(rows: list[list[int]], side: str) -> tuple[Tensor, Tensor]:
    """Ids and mask of rows padded to the longest."""
    most = max(len(row) for row in rows)
    pads = [[0] * (most - len(row)) for row in rows]
    both = [pad + row if side == "left" else row + pad for row, pad in zip(rows, pads, strict=True)]
    ids = torch.tensor(both)
    return ids, (ids != 0).long()


MORE = [11, 5, 60]
