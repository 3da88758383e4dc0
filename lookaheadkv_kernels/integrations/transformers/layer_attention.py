"""Attention of a layer's newest rows, by the project's kernels where those are faster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ...backend import backend_for
from ...ops import lookahead_attention, prefill_attention
from .masks import bottom_right_mask

# torch's CPU attention converts 16-bit keys for every row and repeats them for every head of a
# group; in float32 it is as fast as ours for few rows, and results stay what they were.
OWN_DTYPES = (torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 256


class Attended(NamedTuple):
    """The output of attention."""

    out: Tensor  # [B, q, Hq, D]
    lse: Tensor | None  # [B, Hq, q] float32, where the kernel has it


def served(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the project's CPU kernels take these tensors; they give no gradient."""
    dim = query.shape[3]
    differentiable = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (query, key, value)
    )
    return (
        query.device.type == "cpu"
        and query.dtype in OWN_DTYPES
        and value.shape[3] == dim
        and dim % 8 == 0
        and dim <= MAX_HEAD_DIM
        and not differentiable
        and backend_for(query.device) == "cpu"
    )


def attend_newest(
    scale: float,
    query: Tensor,  # [B, Hq, q, D]
    key: Tensor,  # [B, Hkv, S, D], the last q are the queries' own
    value: Tensor,  # [B, Hkv, S, D]
    valid: Tensor | None,  # [B, S] bool, false at padding
) -> Attended:
    """Causal attention of the newest q of S tokens.

    Args:
        scale: of the logits.
        query: of the newest tokens.
        key: of all tokens.
        value: of all tokens.
        valid: which entries are real; None: all are.
    """
    rows, stored = query.shape[2], key.shape[2]
    if valid is None and served(query, key, value):
        if rows == stored:
            out, lse, _ = prefill_attention(query, key, value, 1, scale=scale)
        else:
            out, lse, _ = lookahead_attention(query, key, value, scale=scale)
        return Attended(out.transpose(1, 2), lse)
    mask = None
    if rows != stored or valid is not None:
        mask = bottom_right_mask(rows, stored, valid, query.device)
    # What transformers' function asks of a module; the models' own differ in what they have.
    module = SimpleNamespace(num_key_value_groups=query.shape[1] // key.shape[1], is_causal=True)
    out = sdpa_attention_forward(module, query, key, value, mask, scaling=scale)[0]
    return Attended(out, None)
