"""Triton's kernels compiled ahead of time for chips that need not be here, and their tile choices.

Compiling takes seconds a kernel, so a part of the recorded table is compiled again: every kernel
for Hopper at the shapes that have a bar, and the matrix kernels for the other chips.
"""

from __future__ import annotations

import itertools
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from bench import triton_resources as table
from bench.triton_ahead import Resources, compile_key, resources
from lookaheadkv_kernels.triton import (
    compact,
    implementation,
    paged_plan,
    paged_select,
    splits,
    tiles,
)
from lookaheadkv_kernels.triton.launch import record

MATRIX = (
    "split_attention_kernel",
    "column_scores_kernel",
    "row_gradient_kernel",
    "key_gradient_kernel",
    "prefill_attention_kernel",
)
INSTRUCTIONS = {
    "sm_80": {"mma"},
    "sm_90": {"wgmma", "mma"},
    "sm_100": {"tcgen05", "mma"},
    "gfx942": {"mfma"},
}
BARS = [
    case
    for case in table.CASES
    if case.target == "sm_90" and case.dtype == torch.bfloat16 and case.head_dim < 256
]
OTHERS = [case for case in table.CASES if case not in BARS]


def long_or_quick(case: table.Case) -> Any:
    """The chips that Hopper does not stand for are quick to compile for, but for Blackwell."""
    marks = () if case.target in ("sm_80", "gfx942") else pytest.mark.slow
    return pytest.param(case, id=case.label, marks=marks)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compiled here and now, not found in a cache."""
    import triton

    triton.knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))


def compiled(case: table.Case, kernels: tuple[str, ...] = ()) -> list[Resources]:
    launches = table.record_case(case)
    wanted = [x for x in launches if not kernels or x.kernel.__name__ in kernels]
    return [resources(launch, table.TARGETS[case.target]) for launch in wanted]


def recorded() -> list[str]:
    return Path(table.TABLE).read_text().splitlines()


def check(case: table.Case, used: Resources) -> None:
    """What the table says, within the chip's limits, on its matrix units."""
    import triton

    assert used.shared_memory <= table.TARGETS[case.target].shared_memory
    if used.kernel in MATRIX:
        assert used.matrix_instruction in INSTRUCTIONS[case.target]
    if f"Triton {triton.__version__} " in " ".join(recorded()):
        assert table.row(case, used) in recorded()


@pytest.mark.parametrize("case", BARS, ids=lambda case: case.label)
def test_hopper(case):
    """No spills for bf16 at D 64 and 128, tiles through the copy engine, tall tiles on wgmma."""
    for used in compiled(case, MATRIX):
        check(case, used)
        assert used.spills == 0
        if used.kernel in ("split_attention_kernel", "column_scores_kernel"):
            assert used.bulk_copies
            assert used.matrix_instruction == "wgmma" or case.group == 1


@pytest.mark.parametrize("case", [*map(long_or_quick, OTHERS)])
def test_other_chips(case):
    for used in compiled(case, MATRIX):
        check(case, used)
        assert used.spills <= (512 if case.dtype == torch.float32 else 64)


def test_kernels_without_products():
    """select, gather and the sums, which do not depend on the shapes above."""
    for used in compiled(BARS[1]):
        if used.kernel not in MATRIX:
            check(BARS[1], used)
            assert used.spills == 0


@pytest.mark.parametrize(
    "target, cache",
    [
        ("sm_90", torch.bfloat16),
        ("sm_80", torch.float8_e4m3fn),
        ("sm_100", torch.int8),
        ("gfx942", torch.float8_e5m2),
    ],
    ids=str,
)
def test_paged(target, cache):
    """The kernels on paged caches for every chip, also those that know no float8 type."""
    names = {"paged_lse_kernel", "paged_column_scores_kernel", "compact_kv_cache_kernel"}
    for launch in table.record_paged(target, cache):
        if launch.kernel.__name__ not in names:
            continue
        used = resources(launch, table.TARGETS[target])
        names.remove(used.kernel)
        assert used.shared_memory <= table.TARGETS[target].shared_memory
        assert used.spills == 0
        if used.kernel != "compact_kv_cache_kernel":
            assert used.matrix_instruction in INSTRUCTIONS[target]
    assert not names


def test_table_is_complete():
    """A row for every case, all within their chip's limits; 16-bit types do not spill on Hopper."""
    rows = [line.split(" | ") for line in recorded() if line.startswith("| ")][2:]
    labels = {case.label for case in table.CASES}
    assert {" | ".join(row[:4]).removeprefix("| ") for row in rows} == labels
    for row in rows:
        target, dtype, spills = row[0].removeprefix("| "), row[1], int(row[9])
        assert int(row[7]) <= table.TARGETS[target].shared_memory
        if dtype != "float32":
            assert spills <= (0 if target == "sm_90" else 64)


SHAPES = list(
    itertools.product((1, 100, 32_800, 1_000_000), (1, 32, 100, 128, 2048), (8, 64, 72, 128, 256))
)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("target", table.TARGETS.values(), ids=lambda target: str(target.arch))
def test_sweeps_cover_every_key_and_fit(target, size):
    choices = (
        splits.attention,
        splits.scores,
        partial(splits.paged_scores, quantised=False),
        partial(splits.paged_scores, quantised=True),
        splits.backward,
    )
    for choose, (keys, rows, head_dim) in itertools.product(choices, SHAPES):
        sweep = choose(8, rows, keys, head_dim, size, target)
        tiles = splits.ceil_div(keys, sweep.block_keys)
        assert sweep.num_splits * sweep.tiles_per_split >= tiles
        assert (sweep.num_splits - 1) * sweep.tiles_per_split < tiles
        assert head_dim <= sweep.block_dim <= 256
        for tile in (sweep.block_rows, sweep.block_keys, sweep.block_dim):
            assert tile >= 16 and tile & (tile - 1) == 0
        tile_bytes = sweep.block_keys * sweep.block_dim * size
        assert target.backend == "hip" or sweep.num_stages * tile_bytes <= target.shared_memory
        assert sweep.num_warps in (4, 8) and sweep.num_stages >= 1


def test_splits_fill_the_chip():
    assert splits.splits(8, 512, 132) == (16, 32)  # one wave, as in the next three
    assert splits.splits(132, 512, 132) == (1, 512)
    assert splits.splits(1, 512, 132) == (128, 4)  # four tiles a split at least
    assert splits.splits(1, 1, 132) == (1, 4)
    assert splits.splits(500, 512, 132) == (5, 103)  # 18.9 waves of 103 instead of 3.8 of 512


def test_few_of_the_chip_idle_in_the_last_wave():
    """Nine tenths of it work on average, for any batch: also 136 units on 132 processors."""
    tiles, num_sms = 512, 132
    for units in range(1, 1000):
        num_splits, per_split = splits.splits(units, tiles, num_sms)
        waves = splits.ceil_div(units * num_splits, num_sms)
        assert units * tiles / (waves * per_split * num_sms) > 0.9


def test_plans_of_any_batch_are_aligned():
    """To 16 bytes, as Triton compiles a kernel anew for pointers that are not."""
    for requests in range(1, 10):
        lens = torch.empty(requests, dtype=torch.int32, device="meta")
        with record(table.TARGETS["sm_90"]):
            starts = torch.empty(requests + 1, device="meta")
            made = paged_plan.plan(starts, lens, 32, num_queries=99, most_keys=99)
        for name, field in vars(made).items():
            assert field.shape == (requests,) and field.is_contiguous(), name
            assert field.storage_offset() * field.element_size() % 16 == 0, name


def test_numbers_compile_one_kernel():
    """Addresses, layers, a part of either: whatever is stored, and however many."""
    with record(table.TARGETS["sm_90"]) as launches:
        for numbers in ([1], [2**40 + 16, 16, 7], list(range(32)), [2**40] * 32):
            compact.store_numbers(numbers, torch.device("meta"))
    assert len({compile_key(launch) for launch in launches}) == 1


def test_grids_of_long_rows_are_possible():
    """The first axis takes 2^31 - 1 programs, the second 65,535: too few for 1,024 keys each."""
    scores = torch.empty(2, 8, 2**27, device="meta")
    with record(table.TARGETS["sm_90"]) as launches:
        implementation("select")(scores, 128, pool_kernel=101)
        tiles.sum_splits(scores, scores[:, 0], 2, 2**27, 1.0)
        paged_select.reduce_heads(scores, torch.empty(2, dtype=torch.int32, device="meta"), True)
    kernels = {launch.kernel.__name__ for launch in launches}
    assert {"pool_kernel", "widen_kernel", "sum_splits_kernel", "reduce_heads_kernel"} < kernels
    for launch in launches:
        assert launch.grid[0] < 2**31 and max(launch.grid[1:], default=0) <= 65_535


def test_column_scores_hoist_all_rows_on_hopper():
    """G 8 with 32 rows is one tile there, and so is G 4 everywhere; G 16 takes two at least."""
    for name, rows, tile in (
        ("sm_90", 256, 256),
        ("sm_100", 256, 128),
        ("sm_80", 256, 128),
        ("sm_90", 128, 128),
        ("sm_90", 512, 128),
    ):
        sweep = splits.scores(8, rows, 32_768, 128, 2, table.TARGETS[name])
        assert (sweep.block_rows, sweep.num_stages >= 2) == (tile, True)


def test_column_scores_in_little_shared_memory():
    """99 KB hold 34 KB of rows with four tiles of 64 keys once; twice not even with two of 32."""
    sweep = splits.scores(8, 128, 32_768, 128, 2, splits.Target("cuda", 89, 128, 101_376))
    assert (sweep.block_keys, sweep.num_stages, sweep.num_splits) == (64, 4, 16)


def test_paged_scores_leave_registers_for_addresses():
    """64 keys at most, in flight with their block ids; 8-bit ones keep the 64 that wgmma needs."""
    for name, quantised, keys, stages in (
        ("sm_90", False, 64, 3),
        ("sm_90", True, 64, 3),
        ("sm_100", True, 64, 2),
        ("sm_80", False, 64, 3),
        ("sm_80", True, 32, 3),
        ("gfx942", True, 64, 2),
    ):
        sweep = splits.paged_scores(32, 128, 32_768, 128, 2, table.TARGETS[name], quantised)
        assert (sweep.block_keys, sweep.num_stages) == (keys, stages)


@pytest.mark.parametrize("keys, expected", [(4096, 1), (131_072, 16), (131_073, 17)])
def test_one_long_request_among_many_is_split(keys, expected):
    """64 requests of 8 heads fill the chip without splits, but all except one may be idle."""
    target = table.TARGETS["sm_90"]
    sweep = splits.attention(64 * 8, 128, keys, 128, 2, target, False)
    assert splits.paged_splits(sweep, keys).num_splits == expected
    assert splits.paged_scores(64 * 8, 128, keys, 128, 2, target, False).num_splits == expected


def test_same_choice_for_same_shapes():
    sweeps = {splits.attention(8, 128, 32_800, 128, 2, table.TARGETS["sm_90"]) for _ in range(3)}
    assert len(sweeps) == 1
