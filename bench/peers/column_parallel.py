"""Column sums of attention, column-parallel, the rows' log-sum-exp given.

As FlagAttention's `total` kernel (github.com/FlagOpen/FlagAttention, `flag_attn/total.py`), with
the rows of a group folded together as in awslabs/keys_values: a program owns a block of keys of one
KV head and goes over the rows that see them. No atomics, and K is read once. On a CPU the same loop
over blocks of keys is plain PyTorch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.peers.pool_topk import pool_topk, torch_gather
from lookaheadkv_kernels.triton.launch import launch

BLOCK_KEYS = 64
CPU_BLOCK_KEYS = 1024


def column_parallel_scores(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N + L, D]
    lse: Tensor,  # [B, Hq, L] float32
) -> Tensor:
    """Mean probability of each prompt key over the rows and the group: float32 [B, Hkv, N]."""
    batch, heads, rows, dim = query.shape
    kv_heads = key.shape[1]
    folded_rows = heads // kv_heads * rows
    folded = query.reshape(batch, kv_heads, folded_rows, dim)
    of_rows = lse.reshape(batch, kv_heads, folded_rows)
    prompt = key[:, :, : key.shape[2] - rows]
    sums = on_gpu if query.is_cuda else on_cpu
    return sums(folded, prompt, of_rows) / folded_rows


def column_parallel_evict(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N + L, D]
    value: Tensor,  # [B, Hkv, N + L, D]
    lse: Tensor,  # [B, Hq, L] float32
    budget: int,
) -> tuple[Tensor, Tensor]:
    """Kept key and value [B, Hkv, budget, D] by these scores, best first."""
    return torch_gather(key, value, pool_topk(column_parallel_scores(query, key, lse), budget))


def on_cpu(query: Tensor, key: Tensor, lse: Tensor) -> Tensor:
    """Sums over folded rows: [B, Hkv, R, D], [B, Hkv, N, D], [B, Hkv, R] -> [B, Hkv, N]."""
    scale = 1 / math.sqrt(query.shape[-1])
    blocks = []
    for block in key.split(CPU_BLOCK_KEYS, dim=2):
        logits = torch.matmul(block, query.transpose(-1, -2)).float() * scale
        blocks.append((logits - lse[:, :, None]).exp_().sum(dim=-1))
    return torch.cat(blocks, dim=-1)


def on_gpu(query: Tensor, key: Tensor, lse: Tensor) -> Tensor:
    """The same for a GPU, any strides of K."""
    from bench.peers.triton_kernels import column_parallel_kernel

    batch, kv_heads, rows, dim = query.shape
    length = key.shape[2]
    sums = torch.empty(batch, kv_heads, length, device=query.device)
    launch(
        column_parallel_kernel,
        (-(-length // BLOCK_KEYS), batch * kv_heads),
        query,
        q_ptr=query.contiguous(),
        k_ptr=key,
        lse_ptr=lse.contiguous(),
        out_sums_ptr=sums,
        stride_kb=key.stride(0),
        stride_kh=key.stride(1),
        stride_ks=key.stride(2),
        kv_heads=kv_heads,
        num_rows=rows,
        num_keys=length,
        scale=1 / math.sqrt(dim),
        D=dim,
        BLOCK_ROWS=32,
        BLOCK_KEYS=BLOCK_KEYS,
        num_warps=4,
        num_stages=2,
    )
    return sums
