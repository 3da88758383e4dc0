"""Paper-style eager eviction: what published LookaheadKV and SnapKV code does in plain PyTorch.

Everything is materialised in the model's dtype: repeated keys [B, Hq, S, D], logits and
probabilities [B, Hq, L, S]. This is the peer of the accuracy rule (a kernel's error may be at most
twice this code's) and of the speed bars, so it is kept as the model codebases have it, not tuned.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def repeat_kv(key: Tensor, num_groups: int) -> Tensor:
    """[B, Hkv, S, D] -> [B, Hkv * G, S, D], as in transformers' attention."""
    batch, heads, keys, head_dim = key.shape
    if num_groups == 1:
        return key
    expanded = key[:, :, None].expand(batch, heads, num_groups, keys, head_dim)
    return expanded.reshape(batch, heads * num_groups, keys, head_dim)


def eager_probabilities(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N + L, D]
) -> Tensor:
    """Probabilities [B, Hq, L, N + L] in the query's dtype, causal inside the L x L tail.

    The softmax runs in float32 and is cast back.
    """
    rows, head_dim = query.shape[2:]
    keys = repeat_kv(key, query.shape[1] // key.shape[1])
    weights = torch.matmul(query, keys.transpose(2, 3)) / math.sqrt(head_dim)
    minimum = torch.finfo(weights.dtype).min
    mask = torch.full((rows, rows), minimum, dtype=weights.dtype, device=weights.device)
    weights[..., -rows:] += mask.triu(1)
    return F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)


def eager_attention(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N + L, D]
    value: Tensor,  # [B, Hkv, N + L, D]
) -> Tensor:
    """Attention output [B, Hq, L, D] of the observation rows."""
    values = repeat_kv(value, query.shape[1] // value.shape[1])
    return torch.matmul(eager_probabilities(query, key), values)


def eager_scores(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N + L, D]
) -> Tensor:
    """Mean probability of each prompt key over the rows, then over the group: [B, Hkv, N]."""
    batch, heads, rows, _ = query.shape
    kv_heads, prompt = key.shape[1], key.shape[2] - rows
    per_head = eager_probabilities(query, key)[..., :prompt].mean(dim=2)
    return per_head.view(batch, kv_heads, heads // kv_heads, prompt).mean(dim=2)


def eager_score_and_evict(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N + L, D]
    value: Tensor,  # [B, Hkv, N + L, D]
    budget: int,
    pool_kernel: int = 7,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Score, pool, Top-K and gather one layer's prompt cache (paper algorithm 2).

    Returns key and value [B, Hkv, K, D], indices int64 [B, Hkv, K] in ``topk``'s order (best
    first) and scores [B, Hkv, N], with K = min(budget, N). The observation KV are dropped.
    """
    scores = eager_scores(query, key)
    prompt = scores.shape[-1]
    pooled = F.max_pool1d(scores, pool_kernel, stride=1, padding=pool_kernel // 2)
    indices = pooled.topk(min(budget, prompt), dim=-1).indices
    rows = indices[..., None].expand(-1, -1, -1, key.shape[-1])
    kept_key = key[:, :, :prompt].gather(2, rows)
    kept_value = value[:, :, :prompt].gather(2, rows)
    return kept_key, kept_value, indices, scores
