"""Room 1: attention of the L observation rows over N prompt keys and their own L keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype the oracle computes in: float64 for float64 inputs, float32 for the rest."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def expand_heads(key: Tensor, num_query_heads: int) -> Tensor:
    """[B, Hkv, S, D] -> [B, Hq, S, D]: query head h reads KV head h // G."""
    return key.repeat_interleave(num_query_heads // key.shape[1], dim=1)


def visible_keys(
    batch: int,
    num_rows: int,
    num_keys: int,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Which of the S = N + L keys each row sees: bool [B, L, S].

    Bottom-right causal (row i sees keys 0 .. N+i); of the N prompt keys only
    ``leftpad_k[b] <= j < seqused_k[b]`` are there, the L observation keys always are.
    """
    prompt = num_keys - num_rows
    j = torch.arange(num_keys, device=device)
    i = torch.arange(num_rows, device=device)
    causal = j[None, :] <= prompt + i[:, None]
    first = torch.zeros(batch, dtype=torch.long, device=device) if leftpad_k is None else leftpad_k
    last = (
        torch.full((batch,), prompt, dtype=torch.long, device=device)
        if seqused_k is None
        else seqused_k
    )
    real = (j >= prompt) | ((j >= first[:, None]) & (j < last[:, None]))
    return causal[None] & real[:, None]


def masked_logits(
    query: Tensor,
    key: Tensor,
    scale: float | None,
    leftpad_k: Tensor | None,
    seqused_k: Tensor | None,
) -> Tensor:
    """Scaled, masked q k^T: [B, Hq, L, S] in the compute dtype."""
    dtype = compute_dtype(query)
    batch, heads, rows, head_dim = query.shape
    scale = 1.0 / math.sqrt(head_dim) if scale is None else scale
    k = expand_heads(key.to(dtype), heads)
    logits = torch.matmul(query.to(dtype), k.transpose(-1, -2)) * scale
    mask = visible_keys(batch, rows, key.shape[2], leftpad_k, seqused_k, query.device)
    return logits.masked_fill(~mask[:, None], -math.inf)


def mean_over_rows_and_group(probs: Tensor, num_kv_heads: int) -> Tensor:
    """[B, Hq, L, S] -> [B, Hkv, S]: mean over the L rows and the G query heads of a KV head."""
    batch, heads, rows, keys = probs.shape
    return probs.reshape(batch, num_kv_heads, heads // num_kv_heads * rows, keys).mean(dim=2)


def attention_probabilities(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N + L, D]
    *,
    scale: float | None = None,
    leftpad_k: Tensor | None = None,  # [B] int32
    seqused_k: Tensor | None = None,  # [B] int32
) -> Tensor:
    """softmax(scale * q k^T) over prompt and observation keys (paper eq. 4): [B, Hq, L, N + L]."""
    return torch.softmax(masked_logits(query, key, scale, leftpad_k, seqused_k), dim=-1)


def lookahead_attention(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N + L, D]
    value: Tensor,  # [B, Hkv, N + L, D]
    *,
    scale: float | None = None,
    leftpad_k: Tensor | None = None,  # [B] int32
    seqused_k: Tensor | None = None,  # [B] int32
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention output [B, Hq, L, D], log-sum-exp [B, Hq, L] and column scores [B, Hkv, N].

    The output keeps the query's dtype; the other two are in the compute dtype.
    """
    logits = masked_logits(query, key, scale, leftpad_k, seqused_k)
    probs = torch.softmax(logits, dim=-1)
    out = torch.matmul(probs, expand_heads(value.to(probs.dtype), query.shape[1]))
    prompt = key.shape[2] - query.shape[2]
    scores = mean_over_rows_and_group(probs, key.shape[1])[..., :prompt]
    return out.to(query.dtype), torch.logsumexp(logits, dim=-1), scores


def prefill_attention(
    query: Tensor,  # [B, Hq, S, D]
    key: Tensor,  # [B, Hkv, S, D]
    value: Tensor,  # [B, Hkv, S, D]
    num_lookahead: int,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention of all S = N + L rows, with the column scores of the last L of them.

    Returns output [B, Hq, S, D], log-sum-exp [B, Hq, S] and scores [B, Hkv, N].
    """
    out, lse, _ = lookahead_attention(query, key, value, scale=scale)
    rows = query[:, :, query.shape[2] - num_lookahead :]
    _, _, scores = lookahead_attention(rows, key, value, scale=scale)
    return out, lse, scores
