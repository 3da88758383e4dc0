"""Room 4: the kept rows of key and value, copied bit for bit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import splits
from .launch import launch
from .problem import strides
from .tiles import program_of


@triton.jit(do_not_specialize=["kv_heads", "num_keys", "num_kept"])
def gather_kv_kernel(
    k_ptr,  # [B, Hkv, S, D]; values as integers, so that no bit changes
    v_ptr,
    indices_ptr,  # [B, Hkv, K] int32, contiguous
    out_key_ptr,  # [B, Hkv, K, D]
    out_value_ptr,
    stride_kb,
    stride_kh,
    stride_ks,
    stride_vb,
    stride_vh,
    stride_vs,
    kv_heads,
    num_keys,
    num_kept,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """BLOCK_ROWS kept slots of one KV head; an empty slot (-1) gives zeros."""
    tile, _, unit, b, h = program_of(tl.cdiv(num_kept, BLOCK_ROWS), 1, kv_heads)
    slots = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    index = tl.load(indices_ptr + unit * num_kept + slots, mask=slots < num_kept, other=-1)
    d = tl.arange(0, BLOCK_DIM)
    inside = (slots < num_kept)[:, None] & (d < D)[None, :]
    # An index past the end is clamped: a GPU cannot report it without a host sync.
    row = tl.minimum(index, num_keys - 1).to(tl.int64)[:, None]
    filled = inside & (row >= 0)
    key = tl.load(
        k_ptr + b * stride_kb + h * stride_kh + row * stride_ks + d[None, :], mask=filled, other=0
    )
    value = tl.load(
        v_ptr + b * stride_vb + h * stride_vh + row * stride_vs + d[None, :], mask=filled, other=0
    )
    out = (unit * num_kept + slots)[:, None] * D + d[None, :]
    tl.store(out_key_ptr + out, key, mask=inside)
    tl.store(out_value_ptr + out, value, mask=inside)


def gather_kv(
    key: Tensor,  # [B, Hkv, S, D]
    value: Tensor,  # [B, Hkv, S, D]
    indices: Tensor,  # [B, Hkv, K] int32, contiguous
    out_key: Tensor,  # [B, Hkv, K, D], contiguous
    out_value: Tensor,  # like out_key
) -> None:
    """Write rows ``indices`` of key and value."""
    batch, kv_heads, num_keys, head_dim = key.shape
    kept = indices.shape[2]
    rows = splits.gather_rows(head_dim, key.element_size())
    integer = torch.int32 if key.element_size() == 4 else torch.int16
    launch(
        gather_kv_kernel,
        (batch * kv_heads * splits.ceil_div(kept, rows),),
        key,
        k_ptr=key.view(integer),
        v_ptr=value.view(integer),
        indices_ptr=indices,
        out_key_ptr=out_key.view(integer),
        out_value_ptr=out_value.view(integer),
        **strides("k", key),
        **strides("v", value),
        kv_heads=kv_heads,
        num_keys=num_keys,
        num_kept=kept,
        D=head_dim,
        BLOCK_ROWS=rows,
        BLOCK_DIM=splits.block_dim(head_dim),
        num_warps=4,
    )
