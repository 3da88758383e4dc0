"""Latency of each room and of the whole op on the CPU, beside the paper-style eager code.

`pytest bench/` runs it at 4K prompt keys; `--prompt 32768` (repeatable) at others.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lookaheadkv_kernels as lkv
from bench.cases import Case
from bench.peers.eager import eager_score_and_evict
from lookaheadkv_kernels.info import active_isa, cpu_model

BUDGET = 128


def describe(benchmark: Any, case: Case, *, bytes_read: int, flops: int) -> None:
    """What a reader needs beside the time: the work, and where it was done."""
    benchmark.group = f"{case.dtype} N={case.num_prompt}"
    benchmark.extra_info.update(
        bytes=bytes_read,
        flops=flops,
        dtype=str(case.dtype),
        num_prompt=case.num_prompt,
        isa=active_isa(),
        cpu=cpu_model(),
        threads=torch.get_num_threads(),
    )


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def case(request: pytest.FixtureRequest, num_prompt: int) -> Case:
    return Case(num_prompt=num_prompt, dtype=request.param)


def test_attention(benchmark: Any, case: Case) -> None:
    query, key, value = case.inputs()
    benchmark(lkv.lookahead_attention, query, key, value)
    describe(benchmark, case, bytes_read=2 * case.key_bytes, flops=2 * case.score_flops)


def test_scores_with_lse(benchmark: Any, case: Case) -> None:
    query, key, value = case.inputs()
    lse = lkv.lookahead_attention(query, key, value).lse
    benchmark(lkv.column_scores, query, key, lse)
    describe(benchmark, case, bytes_read=case.key_bytes, flops=case.score_flops)


def test_select(benchmark: Any, case: Case) -> None:
    scores = torch.rand(1, case.num_kv_heads, case.num_prompt)
    benchmark(lkv.select, scores, BUDGET)
    describe(benchmark, case, bytes_read=scores.nbytes, flops=0)


def test_gather(benchmark: Any, case: Case) -> None:
    _, key, value = case.inputs()
    indices = lkv.select(torch.rand(1, case.num_kv_heads, case.num_prompt), BUDGET)
    benchmark(lkv.gather_kv, key, value, indices)
    kept = 2 * case.num_kv_heads * BUDGET * case.head_dim * case.dtype.itemsize
    describe(benchmark, case, bytes_read=kept, flops=0)


def test_score_and_evict(benchmark: Any, case: Case) -> None:
    query, key, value = case.inputs()
    benchmark(lkv.score_and_evict, query, key, value, BUDGET)
    describe(benchmark, case, bytes_read=case.key_bytes, flops=case.score_flops)


def test_eager_score_and_evict(benchmark: Any, case: Case) -> None:
    query, key, value = case.inputs()
    benchmark(eager_score_and_evict, query, key, value, BUDGET)
    describe(benchmark, case, bytes_read=case.key_bytes, flops=case.score_flops)
