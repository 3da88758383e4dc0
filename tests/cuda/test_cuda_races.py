"""Races of the CUDA kernels, found on a CPU by what CUDA orders (tests/cpp/cuda_emulation/races.h).

The kernels have none; the detector reports what it should, in small kernels with one fault each,
and in the real ones for every instruction that orders something, taken away one at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.build_tools import ROOT, passed_checks, run, tool
from support.races import (
    Edit,
    Fault,
    accesses,
    build,
    build_edited,
    possible_faults,
    reached_faults,
    run_check,
)

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="fibers map their stacks as Linux does"
)

# Those whose absence no run can show, because others order the same: file, which of its barriers.
SURVIVORS = {
    (
        "scores_fma.cuh",
        1,
    ): "every warp has read the tile before when it comes to the barrier before "
    "the sums of that tile are added up, and the sums are written behind the next two",
    (
        "scores_mma.cuh",
        1,
    ): "the row tile before ends with a barrier behind everything that it reads "
    "but the sums, which the next one writes behind two more",
    ("select_long.cuh", 3): "counts were read before the last barrier of find_threshold, and the "
    "staged keys are read behind the one after the counts are cleared",
}

# Which parts of the program reach a file's kernels, the quickest first.
PARTS = {
    "attention": ("prefill", "paged", "shapes"),
    "scores": ("prefill", "paged", "shapes"),
    "select": ("paged", "evict"),
    "evict": ("evict",),
    "compact": ("paged",),
    "gather": ("shapes",),
    "paged": ("paged",),
}

EDITS = (
    Edit(
        "one buffer for the sums of two tiles",
        "scores_mma.cuh",
        ("scores.cu",),
        (
            ("sums + (i % 2 * Tile::kWarps + row_warp) * kKeys", "sums + row_warp * kKeys"),
            ("sums[(i % 2 * Tile::kWarps + w) * kKeys + key]", "sums[w * kKeys + key]"),
        ),
    ),
    Edit(
        "a tile is loaded before all have read the one in its place",
        "scores_mma.cuh",
        ("scores.cu",),
        (
            ("      load(i + 1);\n", ""),
            ("      wait_copies<0>();\n", "wait_copies<0>(); load(i + 1);"),
        ),
    ),
    Edit(
        "a tile is loaded before all have read the one in its place",
        "attention_mma.cuh",
        ("attention.cu",),
        (
            ("    load(i + kStages - 1);\n", ""),
            (
                "    wait_copies<kStages - 2>();\n",
                "wait_copies<kStages - 2>(); load(i + kStages - 1);",
            ),
        ),
    ),
    # Two kernels share these functions, of which the linker keeps one copy.
    Edit(
        "a sweep is loaded before all have read the one in its place",
        "select_row.cuh",
        ("select.cu", "evict.cu"),
        (
            ("    load(s + kSelectStages - 1);\n", ""),
            (
                "    wait_copies<kSelectStages - 2>();\n",
                "wait_copies<kSelectStages - 2>(); load(s + kSelectStages - 1);",
            ),
        ),
    ),
    Edit(
        "one stage too few",
        "select_row.cuh",
        ("select.cu", "evict.cu"),
        (("s % kSelectStages *", "s % (kSelectStages - 1) *"),),
    ),
    Edit(
        "a plain store instead of a publication",
        "evict.cu",
        ("evict.cu",),
        (("publish(selected + row)", "selected[row] = 1"),),
    ),
    Edit(
        "a plain load instead of a ticket",
        "evict.cu",
        ("evict.cu",),
        (("atomic_add_device(params.progress, 1)", "(*params.progress)++"),),
    ),
    Edit(
        "a plain addition",
        "compact.cu",
        ("compact.cu",),
        (("atomic_add_shared(counts, up)", "*counts += up"),),
    ),
)
# Blocks in the order of their indices, of which a later one may start first.
NO_TICKETS = Edit(
    "no tickets",
    "evict.cu",
    ("evict.cu",),
    (("atomic_add_device(params.progress, 1)", "static_cast<int>(block_index())"),),
)


def parts_of(file: str) -> tuple[str, ...]:
    return next(parts for stem, parts in PARTS.items() if file.startswith(stem))


def first_race(program: Path, fault: Fault) -> str | None:
    for part in parts_of(fault.file):
        result = run_check(program, "--brief", fault.option, part)
        assert result.returncode in (0, 3), f"{fault}\n{result.stdout}\n{result.stderr}"
        if result.returncode == 3:
            return result.stdout
    return None


def survivors() -> Iterator[Fault]:
    """The faults that ``SURVIVORS`` means: it counts the barriers of a file."""
    for file, number in SURVIVORS:
        barriers = [f for f in possible_faults() if f.file == file and f.what == "no-barrier"]
        yield barriers[number - 1]


def test_detector_and_a_small_part(tmp_path: Path) -> None:
    program = build(tmp_path, "cuda_race_check")

    small_kernels = run_check(program, "detector")
    assert passed_checks(small_kernels.stdout) >= 2 * 10 * 12  # twice ten kernels, some schedules

    selected = run_check(program, "--brief", "--faults", "--interleave=1", "select")
    assert passed_checks(selected.stdout) > 100
    assert accesses(selected.stdout) > 1_000_000

    # A race is reported with the lines of both accesses, and ends in a failure.
    faults = [f for f in reached_faults(selected.stdout) if f.file == "select_row.cuh"]
    assert len(faults) >= 8
    for fault in faults:
        result = run_check(program, "--brief", fault.option, "select")
        assert result.returncode == 3, fault
        assert "RACE" in result.stdout, fault
        assert result.stdout.count("select") >= 2, result.stdout

    # A grid that waits for a block which cannot start, or for nobody, ends with a message.
    for part, waiter in (("deadlock", "blocks wait for one"), ("hang", "blocks wait for one")):
        result = run_check(program, part)
        assert result.returncode != 0, part
        assert waiter in result.stdout, result.stdout


def test_instruments_once(tmp_path: Path) -> None:
    both = ("-DLOOKAHEADKV_SANITIZE=ON", "-DLOOKAHEADKV_RACES=ON", "-DLOOKAHEADKV_OPS=OFF")
    result = run([tool("cmake"), "-S", ROOT, "-B", tmp_path, *both])
    assert result.returncode != 0
    assert "LOOKAHEADKV_RACES" in result.stderr


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("races"), "cuda_kernel_check")


@pytest.mark.slow
def test_no_races(program: Path) -> None:
    """All checks of the emulation, and the grids whose blocks wait for each other once more."""
    runs = [
        ("select",),
        ("emulation", "detector", "evict", "paged", "prefill"),
        ("shapes",),
        *(("--brief", f"--interleave={seed}", "evict", "paged") for seed in range(1, 5)),
    ]
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda arguments: run_check(program, *arguments), runs))
    for result in results:
        assert result.returncode == 0, result.stdout
        assert accesses(result.stdout) > 1_000_000
    assert sum(passed_checks(result.stdout) for result in results) > 1000


@pytest.mark.slow
def test_every_fault_is_reported(program: Path) -> None:
    """Each barrier, wait, commit, release and acquire, taken away one at a time."""
    faults = set(possible_faults())
    assert len(faults) > 60
    parts = sorted({part for parts in PARTS.values() for part in parts})
    with ThreadPoolExecutor() as pool:
        reached = pool.map(lambda part: run_check(program, "--brief", "--faults", part), parts)
        assert set().union(*(reached_faults(result.stdout) for result in reached)) == faults
        races = dict(zip(faults, pool.map(lambda f: first_race(program, f), faults), strict=True))
    assert {fault for fault, race in races.items() if race is None} == set(survivors())


@pytest.mark.slow
def test_faults_planted_by_hand(program: Path, tmp_path: Path) -> None:
    for number, edit in enumerate(EDITS):
        edited = build_edited(program, edit, tmp_path / str(number))
        outputs = (run_check(edited, "--brief", part).stdout for part in parts_of(edit.file))
        assert any("RACE" in output for output in outputs), f"{edit.file}: {edit.what}"
    edited = build_edited(program, NO_TICKETS, tmp_path / "tickets")
    runs = [run_check(edited, "--brief", f"--interleave={seed}", "evict") for seed in range(1, 4)]
    assert any("blocks wait for one that cannot start" in result.stdout for result in runs)
