"""What each Triton kernel takes of a chip: compiled ahead of time for chips that need not be here.

``python -m bench.triton_resources`` writes tests/triton/resources.md;
tests/triton/test_triton_ahead.py compiles again and compares. The launches are those that the ops
make on meta tensors of Llama-3.1-8B's shapes, so the tiles are those that splits.py chooses.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.triton_ahead import Resources, compile_key, resources
from lookaheadkv_kernels.triton import implementation
from lookaheadkv_kernels.triton.launch import Launch, record
from lookaheadkv_kernels.triton.splits import Target

TABLE = Path(__file__).resolve().parents[1] / "tests" / "triton" / "resources.md"

TARGETS = {
    "sm_80": Target("cuda", 80, 108, 166_912),
    "sm_90": Target("cuda", 90, 132, 232_448),
    "sm_100": Target("cuda", 100, 148, 232_448),
    "gfx942": Target("hip", 942, 304, 65_536),
}
PROMPT, ROWS, KV_HEADS = 32_768, 32, 8


@dataclass(frozen=True)
class Case:
    """One target and model shape."""

    target: str
    dtype: torch.dtype
    head_dim: int
    group: int

    @property
    def label(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.target} | {dtype} | {self.head_dim} | {self.group}"


CASES = [
    *(
        Case("sm_90", torch.bfloat16, head_dim, group)
        for head_dim in (64, 128)
        for group in (1, 4, 8)
    ),
    *(Case(name, torch.bfloat16, 128, 4) for name in TARGETS if name != "sm_90"),
    Case("sm_90", torch.bfloat16, 256, 4),
    Case("sm_90", torch.float16, 128, 4),
    Case("sm_90", torch.float32, 128, 4),
]


def record_case(case: Case) -> list[Launch]:
    """The launches of every op, each kernel once for every way it is specialised."""

    def meta(*shape: int, dtype: torch.dtype = case.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    heads, keys, dim = case.group * KV_HEADS, PROMPT + ROWS, case.head_dim
    query, key = meta(1, heads, ROWS, dim), meta(1, KV_HEADS, keys, dim)
    scores = meta(1, KV_HEADS, PROMPT, dtype=torch.float32)
    # Rows longer than the registers hold, and a pool wider than one load sweep.
    long_scores = meta(1, KV_HEADS, 4 * PROMPT, dtype=torch.float32)
    with record(TARGETS[case.target]) as launches:
        implementation("lookahead_attention")(query, key, key)
        implementation("column_scores")(query, key)
        lse = meta(1, heads, ROWS, dtype=torch.float32)
        implementation("column_scores_backward")(scores, query, key, lse)
        implementation("prefill_attention")(meta(1, heads, keys, dim), key, key, ROWS)
        implementation("select")(scores, 128)
        implementation("select")(long_scores, 128, pool_kernel=101)
        indices = meta(1, KV_HEADS, 128, dtype=torch.int32)
        implementation("gather_kv")(key, key, indices)
    return _distinct(launches)


def record_paged(target: str, cache_dtype: torch.dtype) -> list[Launch]:
    """The launches of the ops on paged caches: bf16 queries, D 128, pages of 16, all 32 layers."""

    def meta(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    requests, budget, layers = 4, 2048, 32
    cache = meta(8192, 16, KV_HEADS, 128, dtype=cache_dtype)
    query = meta(requests * ROWS, 4 * KV_HEADS, 128, dtype=torch.bfloat16)
    scale = None
    if cache_dtype != torch.bfloat16:
        scale = meta(8192, 16, KV_HEADS, dtype=torch.float32)
    table, lens = meta(requests, PROMPT // 16), meta(requests)
    with record(TARGETS[target]) as launches:
        implementation("paged_score_and_select")(
            query,
            cache,
            table,
            meta(requests + 1),
            lens,
            ROWS,
            PROMPT,
            budget,
            k_scale=scale,
            head_reduction="max",
        )
        implementation("compact_kv_cache")(
            [cache] * (2 * layers),
            meta(layers, requests, KV_HEADS, budget),
            meta(layers, requests),
            table,
        )
    return _distinct(launches)


def _distinct(launches: list[Launch]) -> list[Launch]:
    unique: dict[str, Launch] = {}
    for launch in launches:
        unique.setdefault(compile_key(launch), launch)
    return list(unique.values())


def measure(cases: list[Case]) -> Iterator[tuple[Case, Resources]]:
    """Compile every launch of the cases."""
    for case in cases:
        for launch in record_case(case):
            yield case, resources(launch, TARGETS[case.target])


def row(case: Case, used: Resources) -> str:
    """A line of the table."""
    cells = (
        case.label,
        used.kernel,
        used.num_warps,
        used.num_stages,
        used.shared_memory,
        used.registers,
        used.spills,
        used.matrix_instruction,
        "yes" if used.bulk_copies else "no",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


HEADER = """\
# What the Triton kernels take

Written by `python -m bench.triton_resources`, compared by `tests/triton/test_triton_ahead.py`.
Launches of all ops at Llama-3.1-8B's shapes (8 KV heads, 32 rows, 32,768 prompt keys), compiled by
Triton {version} for chips that need not be there. Shared memory in bytes per program, registers per
thread (vector registers on gfx942), spills in bytes per thread (stores and loads together). TMA:
tiles come through the bulk tensor copy engine. A kernel listed twice in a case has two forms.

| target | dtype | D | G | kernel | warps | stages | shared | registers | spills | matrix | TMA |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    """Write the table."""
    import triton

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=TABLE)
    output = parser.parse_args().output
    lines = [row(case, used) for case, used in measure(CASES)]
    output.write_text(HEADER.format(version=triton.__version__) + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
