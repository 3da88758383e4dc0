"""Reads tokens into an evictable cache of one row, or writes them greedily."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .cache import EvictableCache, Observer
from .compat import cache_argument
from .devices import input_device


def end_tokens(model: Any) -> set[int]:
    """Tokens that end the model's answers."""
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else set() if ends is None else {ends}


@torch.no_grad()
def next_logits(
    model: Any, ids: Sequence[int], cache: EvictableCache, position: int | None = None
) -> Tensor:
    """Append ``ids`` to the cache; logits of what follows the last one, [vocabulary].

    Args:
        model: with our attention attached.
        ids: tokens.
        cache: grows by them.
        position: of the first one; None: right behind everything that the cache has seen.
    """
    device = input_device(model)
    tokens = torch.tensor([list(ids)], device=device)
    positions = None
    if position is not None:
        positions = torch.arange(position, position + len(ids), device=device)[None]
    logits: Tensor = model(
        tokens,
        position_ids=positions,
        **{cache_argument(model): cache},
        use_cache=True,
        logits_to_keep=1,
    ).logits
    return logits[0, -1]


@torch.no_grad()
def greedy_answer(
    model: Any,
    cache: EvictableCache,
    logits: Tensor,
    max_tokens: int,
    *,
    position: int | None = None,
    observer: Observer | None = None,
) -> list[int]:
    """The model's greedy answer, up to and including its end token; ``cache`` stays as it is.

    Args:
        model: with our attention attached.
        cache: holds the prompt.
        logits: [vocabulary], of the first token.
        max_tokens: longest answer.
        position: of the first token; None: right behind everything that the cache has seen.
        observer: sees the queries of every token; with one the last token is fed too, though
            nothing follows it.
    """
    ends = end_tokens(model)
    cache = cache.fork()
    answer = [int(logits.argmax())]
    while True:
        last = len(answer) == max_tokens or answer[-1] in ends
        if last and observer is None:
            return answer
        place = None if position is None else position + len(answer) - 1
        with cache.watched(observer):
            logits = next_logits(model, answer[-1:], cache, place)
        if last:
            return answer
        answer.append(int(logits.argmax()))
