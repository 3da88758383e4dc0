"""What each room has to read, write and compute at least, and how fast this device does either."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch

from bench.cases import Case
from bench.clock import clock_of, seconds_of

COPY_ELEMENTS = {"cpu": 2**26, "cuda": 2**28}  # float32: far beyond any cache
GEMM_SIZE = {"cpu": 2048, "cuda": 8192}
ROUNDS = 5


@dataclass(frozen=True)
class Work:
    """Bytes that must move at least, every input and output once, and FLOPs."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Rates:
    """What was measured on this device in this run."""

    bytes_per_second: float  # of a large copy, read and written bytes counted
    flops_per_second: float  # of a large square matrix product

    def floor(self, work: Work) -> float:
        """Seconds that the work takes at these rates, bytes and FLOPs at the same time."""
        return max(work.bytes / self.bytes_per_second, work.flops / self.flops_per_second)


def measure_rates(device: torch.device | str, dtype: torch.dtype) -> Rates:
    """Copy bandwidth, and GEMM rate in ``dtype``: medians of a few rounds."""
    kind = torch.device(device).type
    clock = clock_of(device)
    source = torch.ones(COPY_ELEMENTS[kind], device=device)
    target = torch.zeros_like(source)
    copies = [seconds_of(clock, lambda: target.copy_(source)) for _ in range(ROUNDS + 1)][1:]
    size = GEMM_SIZE[kind]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    products = [seconds_of(clock, lambda: torch.matmul(left, right)) for _ in range(ROUNDS + 1)][1:]
    return Rates(
        2.0 * source.nbytes / statistics.median(copies), 2.0 * size**3 / statistics.median(products)
    )


def _kept_bytes(case: Case, budget: int) -> int:
    """Bytes of the kept K and V."""
    kept = min(budget, case.num_prompt)
    return 2 * case.num_kv_heads * kept * case.head_dim * case.dtype.itemsize


def _index_bytes(case: Case, budget: int) -> int:
    return 4 * case.num_kv_heads * min(budget, case.num_prompt)


def attention_work(case: Case) -> Work:
    """lookahead_attention: query, K and V in; output, log-sum-exp and scores out."""
    lse = 4 * case.num_heads * case.num_rows
    moved = 2 * case.query_bytes + 2 * case.key_bytes + lse + case.score_bytes
    return Work(moved, 2 * case.score_flops)


def scores_work(case: Case) -> Work:
    """column_scores, the log-sum-exp given: query and K in, scores out."""
    lse = 4 * case.num_heads * case.num_rows
    return Work(case.query_bytes + case.key_bytes + lse + case.score_bytes, case.score_flops)


def select_work(case: Case, budget: int) -> Work:
    """select: scores in, indices out."""
    return Work(case.score_bytes + _index_bytes(case, budget), 0)


def gather_work(case: Case, budget: int) -> Work:
    """gather_kv: indices and the kept entries in, the kept entries out."""
    return Work(2 * _kept_bytes(case, budget) + _index_bytes(case, budget), 0)


def evict_work(case: Case, budget: int) -> Work:
    """score_and_evict: query and K in once, the kept entries in and out, scores and indices out."""
    moved = case.query_bytes + case.key_bytes + case.score_bytes
    return Work(moved + gather_work(case, budget).bytes, case.score_flops)
