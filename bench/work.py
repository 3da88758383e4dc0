"""What each room must at least read, write and compute, and this device's rates for both."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch

from bench.cases import Case
from bench.clock import clock_of, interleaved

COPY_ELEMENTS = {"cpu": 2**26, "cuda": 2**28}  # float32: far beyond any cache
GEMM_SIZES = {"cpu": (256, 2048), "cuda": (2048, 8192)}  # of the trial, and at most
GEMM_SECONDS = 0.5  # that measuring a GEMM rate may take, about
ROUNDS = 5


@dataclass(frozen=True)
class Work:
    """The fewest bytes that must move (every input and output once), and FLOPs."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Rates:
    """Rates of this device, measured in this run."""

    bytes_per_second: float  # of a large copy, read and written bytes counted
    flops_per_second: float  # of a large square matrix product

    def floor(self, work: Work) -> float:
        """Seconds that the work takes at these rates; bytes move while FLOPs are done."""
        return max(work.bytes / self.bytes_per_second, work.flops / self.flops_per_second)


def copy_rate(device: torch.device | str) -> float:
    """Bytes per second of a large copy, read and written bytes counted: median of a few rounds."""
    source = torch.ones(COPY_ELEMENTS[torch.device(device).type], device=device)
    target = torch.zeros_like(source)
    seconds = interleaved({"": lambda: target.copy_(source)}, ROUNDS, clock=clock_of(device))
    return 2.0 * source.nbytes / statistics.median(seconds[""])


def _product_seconds(
    device: torch.device | str, dtype: torch.dtype, size: int, rounds: int
) -> list[float]:
    """Seconds of products of two square matrices, after one that is not counted."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    clock = clock_of(device)
    return interleaved({"": lambda: torch.matmul(left, right)}, rounds, clock=clock)[""]


def gemm_rate(device: torch.device | str, dtype: torch.dtype) -> float:
    """FLOPs per second of a square matrix product, as large as GEMM_SECONDS allow: median."""
    size, largest = GEMM_SIZES[torch.device(device).type]
    seconds = min(_product_seconds(device, dtype, size, 2))
    while size < largest and 8 * seconds * (ROUNDS + 1) < GEMM_SECONDS:
        size, seconds = 2 * size, 8 * seconds
    return 2.0 * size**3 / statistics.median(_product_seconds(device, dtype, size, ROUNDS))


def measure_rates(device: torch.device | str, dtype: torch.dtype) -> Rates:
    """Copy bandwidth, and GEMM rate in ``dtype``; takes about a second."""
    return Rates(copy_rate(device), gemm_rate(device, dtype))


def usual_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16, or float32 on a CPU without instructions for bfloat16 (AVX2 alone).

    There torch multiplies bfloat16 at less than a hundredth of the rate of float32.
    """
    on_cpu = torch.device(device).type == "cpu" and torch.backends.mkldnn.is_available()
    if on_cpu and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32
    return torch.bfloat16


def usual_dtype_name(device: torch.device | str = "cpu") -> str:
    """:func:`usual_dtype` as command lines name it."""
    return str(usual_dtype(device)).removeprefix("torch.")


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
    """column_scores, with the log-sum-exp given: query and K in, scores out."""
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
