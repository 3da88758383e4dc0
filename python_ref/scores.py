"""Room 2: column scores, the mean attention each prompt key receives from the L rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .attention import (
    attention_probabilities,
    compute_dtype,
    expand_heads,
    masked_logits,
    mean_over_rows_and_group,
)


def column_scores(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N + L, D]
    lse: Tensor | None = None,  # [B, Hq, L] natural log
    *,
    scale: float | None = None,
    leftpad_k: Tensor | None = None,  # [B] int32
    seqused_k: Tensor | None = None,  # [B] int32
) -> Tensor:
    """Paper eq. 4 and section 3.1, with the GQA mean: scores [B, Hkv, N] in the compute dtype."""
    logits = masked_logits(query, key, scale, leftpad_k, seqused_k)
    if lse is None:
        probs = torch.softmax(logits, dim=-1)
    else:
        probs = torch.exp(logits - lse.to(logits.dtype)[..., None])
    prompt = key.shape[2] - query.shape[2]
    return mean_over_rows_and_group(probs, key.shape[1])[..., :prompt]


def column_scores_backward(
    grad_scores: Tensor,  # [B, Hkv, N]
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N + L, D]
    *,
    scale: float | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of the scores in query and key, by hand (the softmax Jacobian written out).

    With p = softmax(s) and g the upstream gradient (zero on observation keys), per row
    ds = p * (g - <g, p>) / (G L); then dq = scale * ds k and dk = scale * ds^T q, the latter
    summed over the G query heads that share a KV head.
    """
    dtype = compute_dtype(query)
    batch, heads, rows, head_dim = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    group = heads // kv_heads
    scale = 1.0 / math.sqrt(head_dim) if scale is None else scale
    probs = attention_probabilities(
        query, key, scale=scale, leftpad_k=leftpad_k, seqused_k=seqused_k
    )
    grad = torch.zeros(batch, kv_heads, keys, dtype=dtype, device=query.device)
    grad[..., : keys - rows] = grad_scores.to(dtype)
    grad = grad.repeat_interleave(group, dim=1)[:, :, None]
    ds = probs * (grad - (grad * probs).sum(-1, keepdim=True)) / (group * rows)
    dq = scale * torch.matmul(ds, expand_heads(key.to(dtype), heads))
    dk = scale * torch.matmul(ds.transpose(-1, -2), query.to(dtype))
    dk = dk.reshape(batch, kv_heads, group, keys, head_dim).sum(dim=2)
    return dq.to(query.dtype), dk.to(key.dtype)
