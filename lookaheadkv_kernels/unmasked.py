"""Scores of rows that see every key, from ops that mask the last L keys with a causal triangle.

The triangle hides L * (L - 1) / 2 logits at the end of the keys; plain PyTorch adds them here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ops import column_scores, lookahead_attention


def logits_of(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Scaled q k^T in float32: [B, Hq, L, D] and [B, Hkv, S, D] -> [B, Hkv, G, L, S]."""
    batch, heads, rows, dim = query.shape
    kv_heads = key.shape[1]
    grouped = query.float().reshape(batch, kv_heads, heads // kv_heads * rows, dim)
    logits = grouped @ key.float().transpose(-1, -2) * scale
    return logits.view(batch, kv_heads, heads // kv_heads, rows, -1)


def grouped(lse: Tensor, kv_heads: int) -> Tensor:
    """[B, Hq, L] -> [B, Hkv, G, L, 1], which broadcasts against :func:`logits_of`."""
    batch, heads, rows = lse.shape
    return lse.view(batch, kv_heads, heads // kv_heads, rows, 1)


def unmasked_lse(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N, D]
    scale: float,
) -> Tensor:
    """Log-sum-exp of every row's logits over all N keys: float32 [B, Hq, L]; -inf if N is 0.

    Raises:
        RuntimeError: tensors that :func:`~lookaheadkv_kernels.lookahead_attention` refuses.
    """
    rows, num_keys = query.shape[2], key.shape[2]
    last = logits_of(query, key[:, :, max(0, num_keys - rows) :], scale)
    if num_keys <= rows:
        return last.logsumexp(dim=-1).reshape(query.shape[:3])
    # Only the log-sum-exp is used, so the keys may stand for the values.
    _, lse, _ = lookahead_attention(query, key, key, scale=scale)
    hidden = torch.ones(rows, rows, dtype=torch.bool, device=key.device).triu(1)
    hidden_lse = last.masked_fill(~hidden, -torch.inf).logsumexp(dim=-1)
    return torch.logaddexp(lse, hidden_lse.view_as(lse))


def unmasked_scores(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N, D]
    scale: float,
    lse: Tensor | None = None,  # [B, Hq, L] float32
) -> Tensor:
    """Mean attention of L rows to N keys that they all see, over rows and group.

    Args:
        query: float [B, Hq, L, D], the rows after RoPE.
        key: [B, Hkv, N, D] in the query's dtype.
        scale: of the logits.
        lse: float32 [B, Hq, L], log-sum-exp of the rows' softmax if it runs over more keys than
            these; computed over these when None.

    Returns:
        float32 [B, Hkv, N].

    Raises:
        RuntimeError: tensors that :func:`~lookaheadkv_kernels.column_scores` refuses.
    """
    rows, num_keys = query.shape[2], key.shape[2]
    if lse is None:
        lse = unmasked_lse(query, key, scale)
    last = logits_of(query, key[:, :, max(0, num_keys - rows) :], scale)
    after = (last - grouped(lse, key.shape[1])).exp().mean(dim=(2, 3))
    if num_keys <= rows:
        return after
    return torch.cat([column_scores(query, key, lse, scale=scale), after], dim=2)
