"""The baselines' choices, transcribed: one layer, one row of a batch, one head after the other.

Every function takes post-RoPE queries [Hq, R, D] and keys [Hkv, S, D] of one layer and gives, for
each KV head, the kept positions in ascending order. Query head h reads KV head h // G. Logits are
scaled by 1 / sqrt(D); everything is computed in float64. ``cap`` is the budget, ``w`` the window.
Slow on purpose: this is what the policies are checked against.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def head_scores(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    """Sum over the R rows of softmax(q k^T) over the visible keys (bool [R, S]): [Hkv, S].

    The mean is taken over the G query heads that share a KV head.
    """
    heads, kv_heads = query.shape[0], key.shape[0]
    group = heads // kv_heads
    total = torch.zeros(kv_heads, key.shape[1], dtype=torch.float64)
    for head in range(heads):
        logits = query[head].double() @ key[head // group].double().T / math.sqrt(query.shape[2])
        probs = logits.masked_fill(~visible, -math.inf).softmax(dim=-1)
        total[head // group] += probs.sum(dim=0) / group
    return total


def causal(num_rows: int, num_keys: int) -> Tensor:
    """The last ``num_rows`` of ``num_keys`` tokens, each seeing itself and all before."""
    row = torch.arange(num_rows)[:, None] + num_keys - num_rows
    return torch.arange(num_keys)[None] <= row


def smoothed(scores: list[float], pool_kernel: int) -> list[float]:
    """Centred max over ``pool_kernel`` neighbours; outside there is nothing."""
    half = pool_kernel // 2
    return [max(scores[max(0, j - half) : j + half + 1]) for j in range(len(scores))]


def best(scores: list[float], count: int) -> list[int]:
    """Positions of the ``count`` largest, ties to the smaller position; ascending."""
    order = sorted(range(len(scores)), key=lambda j: (-scores[j], j))
    return sorted(order[:count])


def _best_and_window(scores: Tensor, num_keys: int, cap: int, w: int, pool: int) -> list[list[int]]:
    """Top-(cap - w) of the pooled scores before the window, and the window; all if they fit."""
    if num_keys <= cap:
        return [list(range(num_keys)) for _ in scores]
    window = list(range(num_keys - w, num_keys))
    before = [row[: num_keys - w] for row in scores.tolist()]
    return [best(smoothed(row, pool), cap - w) + window for row in before]


def streaming_llm(key: Tensor, cap: int, num_sink: int = 4) -> list[list[int]]:
    """``num_sink`` sinks and cap - num_sink recent entries (Xiao et al., 2023)."""
    n = key.shape[1]
    kept = [j for j in range(n) if j < num_sink or j >= n - (cap - num_sink)]
    return [kept for _ in key]


def random_entries(key: Tensor, cap: int, layer: int, seed: int = 0) -> list[list[int]]:
    """The ``cap`` largest of numbers that the seed and the layer draw."""
    generator = torch.Generator().manual_seed(seed * 65_537 + layer)
    draws = torch.rand(*key.shape[:2], generator=generator)
    return [best(row, cap) for row in draws.tolist()]


def snapkv(query: Tensor, key: Tensor, cap: int, w: int = 32, pool: int = 7) -> list[list[int]]:
    """The last w queries score all entries before them (Li et al., 2024)."""
    rows = query[:, -w:]
    w = rows.shape[1]
    scores = head_scores(rows, key, causal(w, key.shape[1]))
    return _best_and_window(scores, key.shape[1], cap, w, pool)


def pyramidkv_budget(
    layer: int, num_layers: int, n: int, cap: int, w: int = 32, beta: int = 20
) -> int:
    """Entries of a layer, window included, floor division and all (Cai et al., 2024)."""
    b = cap - w
    if n < cap or n < 2 * b:
        return cap
    least = b // beta
    most = 2 * b - least
    if most >= n - w:
        most = n - w
        least = 2 * b - most
    step = (most - least) // (num_layers - 1)
    return most - layer * step + w


def pyramidkv(
    query: Tensor, key: Tensor, layer: int, num_layers: int, cap: int, w: int = 32
) -> list[list[int]]:
    """SnapKV with the layer's budget."""
    return snapkv(query, key, pyramidkv_budget(layer, num_layers, key.shape[1], cap, w), w)


def h2o(query: Tensor, key: Tensor, cap: int, recent: int = 32) -> list[list[int]]:
    """Column sums of all R causal rows, no pooling, Top-(cap - recent), and the recent."""
    scores = head_scores(query, key, causal(query.shape[1], key.shape[1]))
    return _best_and_window(scores, key.shape[1], cap, min(recent, key.shape[1]), 1)


def laq(window: Tensor, draft: Tensor, key: Tensor, cap: int, pool: int = 7) -> list[list[int]]:
    """The window's and the draft's queries, all of them over all prompt keys.

    ``window`` [Hq, w, D] are the last prompt queries, ``draft`` [Hq, m, D]; the draft's own keys
    are not among ``key``, and there is no triangle.
    """
    query = torch.cat([window, draft], dim=1)
    visible = torch.ones(query.shape[1], key.shape[1], dtype=torch.bool)
    scores = head_scores(query, key, visible)
    return _best_and_window(scores, key.shape[1], cap, window.shape[1], pool)


def speckv(
    query: Tensor, key: Tensor, cap: int, num_draft: int, w: int = 32, pool: int = 7
) -> list[list[int]]:
    """Prompt and draft went through the target; window and draft rows score the prompt.

    The newest ``num_draft`` of the rows and keys are the draft.
    """
    rows = query[:, -(w + num_draft) :]
    n, w = key.shape[1] - num_draft, rows.shape[1] - num_draft
    scores = head_scores(rows, key, causal(rows.shape[1], key.shape[1]))[:, :n]
    return _best_and_window(scores, n, cap, w, pool)


def adakv(
    query: Tensor, key: Tensor, cap: int, w: int = 32, alpha: float = 0.2, pool: int = 7
) -> list[list[int]]:
    """SnapKV's scores; the heads' shares of the layer's best set their budgets (Feng et al.)."""
    rows = query[:, -w:]
    n, w = key.shape[1], rows.shape[1]
    if n <= cap:
        return [list(range(n)) for _ in key]
    scores = head_scores(rows, key, causal(w, n))[:, : n - w]
    pooled = [smoothed(row, pool) for row in scores.tolist()]
    b = cap - w
    flat = [score for row in pooled for score in row]
    owners = [place // (n - w) for place in best(flat, len(pooled) * b)]
    window = list(range(n - w, n))
    kept = []
    for head, row in enumerate(pooled):
        budget = round(owners.count(head) * (1 - alpha) + math.floor(alpha * b))
        kept.append(best(row, budget) + window)
    return kept


def oracle(query: Tensor, key: Tensor, cap: int) -> list[list[int]]:
    """The answer's m rows [Hq, m, D] over prompt and answer; prompt columns, Top-cap."""
    m = query.shape[1]
    scores = head_scores(query, key, causal(m, key.shape[1]))[:, : key.shape[1] - m]
    return [best(row, cap) for row in scores.tolist()]
