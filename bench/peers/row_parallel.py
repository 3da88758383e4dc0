"""Column sums of attention, row-parallel in two passes, as z-lab's flash-colreduce has them.

(github.com/z-lab/flash-colreduce.) A program owns a block of query rows of one query head: it
sweeps the keys for the rows' log-sum-exp, then sweeps them again and adds each key's probabilities
to the result with atomics. Query heads that share keys read them each for itself. On a CPU the same
two passes go over blocks of keys in plain PyTorch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.peers.pool_topk import pool_topk, torch_gather
from lookaheadkv_kernels.triton.launch import launch

BLOCK_ROWS = 64
CPU_BLOCK_KEYS = 1024


def row_parallel_scores(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N + L, D]
) -> Tensor:
    """Mean probability of each prompt key over the rows and the group: float32 [B, Hkv, N]."""
    batch, heads, rows, _ = query.shape
    kv_heads, prompt = key.shape[1], key.shape[2] - rows
    sums = on_gpu(query, key) if query.is_cuda else on_cpu(query, key)
    return sums.view(batch, kv_heads, heads // kv_heads, prompt).sum(dim=2) / (
        rows * (heads // kv_heads)
    )


def row_parallel_evict(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N + L, D]
    value: Tensor,  # [B, Hkv, N + L, D]
    budget: int,
) -> tuple[Tensor, Tensor]:
    """Kept key and value [B, Hkv, budget, D] by these scores, best first."""
    return torch_gather(key, value, pool_topk(row_parallel_scores(query, key), budget))


def on_cpu(query: Tensor, key: Tensor) -> Tensor:
    """Sums over the rows: float32 [B, Hq, N]."""
    batch, heads, rows, dim = query.shape
    kv_heads, length = key.shape[1:3]
    prompt, scale = length - rows, 1 / math.sqrt(dim)
    grouped = query.view(batch, kv_heads, heads // kv_heads, rows, dim)
    last = torch.arange(prompt, length, device=query.device)  # that each row sees

    def logits(start: int) -> Tensor:
        keys = key[:, :, None, start : start + CPU_BLOCK_KEYS]
        products = torch.matmul(grouped, keys.transpose(-1, -2)).float() * scale
        if start + keys.shape[3] > prompt:
            positions = torch.arange(start, start + keys.shape[3], device=query.device)
            products.masked_fill_(positions > last[:, None], float("-inf"))
        return products

    blocks = range(0, length, CPU_BLOCK_KEYS)
    lse = torch.full(grouped.shape[:-1], float("-inf"), device=query.device)
    for start in blocks:
        lse = torch.logaddexp(lse, logits(start).logsumexp(dim=-1))
    sums = [(logits(start) - lse[..., None]).exp().sum(dim=-2) for start in blocks]
    return torch.cat(sums, dim=-1)[..., :prompt].reshape(batch, heads, prompt)


def on_gpu(query: Tensor, key: Tensor) -> Tensor:
    """Sums over the rows: float32 [B, Hq, N]."""
    from bench.peers.triton_kernels import row_parallel_kernel

    batch, heads, rows, dim = query.shape
    kv_heads, length = key.shape[1:3]
    sums = torch.zeros(batch, heads, length - rows, device=query.device)
    launch(
        row_parallel_kernel,
        (-(-rows // BLOCK_ROWS), batch * heads),
        query,
        q_ptr=query,
        k_ptr=key,
        out_sums_ptr=sums,
        stride_qb=query.stride(0),
        stride_qh=query.stride(1),
        stride_qs=query.stride(2),
        stride_kb=key.stride(0),
        stride_kh=key.stride(1),
        stride_ks=key.stride(2),
        heads=heads,
        group=heads // kv_heads,
        num_rows=rows,
        num_prompt=length - rows,
        scale=1 / math.sqrt(dim),
        D=dim,
        BLOCK_ROWS=BLOCK_ROWS,
        BLOCK_KEYS=64,
        num_warps=4,
        num_stages=2,
    )
    return sums
