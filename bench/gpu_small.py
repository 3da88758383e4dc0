"""Every op once on small shapes: `compute-sanitizer python -m bench.gpu_small`.

No results are compared; tests/ops/test_gpu.py does that. The shapes cover every kernel's edge
cases: several splits, padding, rows that are not aligned, every padded head dimension, long and
short rows of scores, wide pools.
"""

from __future__ import annotations

import torch

import lookaheadkv_kernels as lkv


def run(dtype: torch.dtype, dim: int, prompt: int) -> None:
    """All ops for one dtype and shape."""
    batch, heads, kv_heads, rows = 2, 6, 2, 17
    query = torch.randn(batch, heads, rows, dim, device="cuda").to(dtype)
    # One element more than a row needs: nothing is aligned to 16 bytes.
    wide = torch.randn(2, batch, kv_heads, prompt + rows, dim + 1, device="cuda").to(dtype)
    for key, value in ((wide[0, ..., :dim], wide[1, ..., :dim]), wide[..., :dim].contiguous()):
        first = torch.tensor([0, prompt // 3], dtype=torch.int32, device="cuda")
        last = torch.tensor([prompt, prompt - 5], dtype=torch.int32, device="cuda")
        lse = lkv.lookahead_attention(query, key, value, leftpad_k=first, seqused_k=last).lse
        lkv.score_and_evict(query, key, value, 40, lse=lse, keep_observation=True, num_sink=2)
        lkv.score_and_evict(query, key, value, 40, leftpad_k=first, seqused_k=last)
        grad = torch.randn(batch, kv_heads, prompt, device="cuda")
        torch.ops.lookaheadkv.column_scores_backward(grad, query, key)
        whole = torch.randn(batch, heads, prompt + rows, dim, device="cuda").to(dtype)
        lkv.prefill_attention(whole, key, value, rows)


def run_paged(dtype: torch.dtype, cache_dtype: torch.dtype, dim: int, page_size: int) -> None:
    """All ops on paged caches; one request is padding."""
    kv_heads, rows, table = 2, 9, torch.randperm(200, dtype=torch.int32).view(4, 50).cuda()
    # Rows that begin at no multiple of 16 bytes, and those that do.
    wide = torch.randn(200, page_size, kv_heads, dim + 1, device="cuda").to(cache_dtype)
    starts = torch.tensor([0, 9, 20, 20, 22], dtype=torch.int32, device="cuda")
    lens = torch.tensor([50 * page_size, 31, 0, 2], dtype=torch.int32, device="cuda")
    query = torch.randn(22, 3 * kv_heads, dim, device="cuda").to(dtype)
    scale = None
    if dtype != cache_dtype:
        scale = torch.rand(200, page_size, kv_heads, device="cuda")
    for cache in (wide[..., :dim], wide[..., :dim].contiguous()):
        kept = lkv.paged_score_and_select(
            query, cache, table, starts, lens, rows, 50 * page_size, 20, k_scale=scale
        )
        caches = [cache, torch.rand(200, page_size, kv_heads, device="cuda")]
        for start in (None, lens - kept.kept_lens):
            lkv.compact_kv_cache(
                caches,
                kept.indices[None],
                kept.kept_lens[None],
                table,
                dst_start=None if start is None else start[None],
            )


def main() -> None:
    """Run, and wait for the device."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for dim, prompt in ((64, 300), (96, 129), (128, 257), (256, 65), (40, 70)):
            run(dtype, dim, prompt)
        for cache_dtype in (dtype, torch.float8_e4m3fn, torch.int8):
            run_paged(dtype, cache_dtype, 64, 16)
            run_paged(dtype, cache_dtype, 40, 3)
    for length in (31, 5_000, 40_000):
        scores = torch.randn(1, 2, length, device="cuda")
        for pool in (1, 7, 201):
            lkv.select(scores, length // 3, pool_kernel=pool, num_sink=1, num_recent=2)
    torch.cuda.synchronize()
    print(f"all ops ran on {lkv.backend_for('cuda')}")


if __name__ == "__main__":
    main()
