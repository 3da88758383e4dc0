"""Tile and split choices: pure functions of shapes, dtype and target, no torch and no GPU.

Every choice is a rule that can be read and unit-tested, not a search: nothing is tuned at the first
request. Two calls of the same shapes on the same chip cut their work, and so round, the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MAX_ROW_TILE = 128
# Rows up to this length are selected by one program that holds the whole row in registers.
MAX_ROW_IN_REGISTERS = 32768
# Rows up to this length are pooled by the program that selects; longer ones by many, before it.
MAX_ROW_POOLED_IN_REGISTERS = 8192
SELECT_CHUNK = 4096
# Wider pools are widened by doubling in memory: log2(pool) sweeps, not pool loads per position.
MAX_FUSED_POOL = 31
HISTOGRAM_CHUNK = 8192
# The most keys of a paged request that one program takes.
MAX_PAGED_SPLIT = 8192


@dataclass(frozen=True)
class Target:
    """What the kernels are compiled for."""

    backend: str  # "cuda", "hip" or "interpreter"
    arch: int  # 80, 90, 100 (compute capability x 10), 942 (gfx942), 0 (interpreter)
    num_sms: int
    shared_memory: int  # bytes that a program may use

    @property
    def has_tma(self) -> bool:
        """Whether there is a bulk tensor copy engine (Hopper and newer)."""
        return self.backend == "interpreter" or (self.backend == "cuda" and self.arch >= 90)

    def precision(self, element_size: int) -> str:
        """How tl.dot multiplies: float32 inputs must keep float32 accuracy."""
        if element_size == 4 and self.backend == "cuda":
            return "tf32x3"
        return "ieee" if element_size == 4 else "tf32"


INTERPRETER = Target("interpreter", 0, 4, 1 << 20)


@dataclass(frozen=True)
class Sweep:
    """How one sweep over the keys is cut."""

    block_rows: int
    block_keys: int
    block_dim: int
    num_splits: int  # programs that share the keys of one head
    tiles_per_split: int
    num_warps: int
    num_stages: int

    def arguments(self, precision: str) -> dict[str, int | str]:
        """What every kernel takes of it; ``precision`` as :meth:`Target.precision` has it."""
        return {
            "BLOCK_ROWS": self.block_rows,
            "BLOCK_KEYS": self.block_keys,
            "BLOCK_DIM": self.block_dim,
            "PRECISION": precision,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def next_power_of_two(n: int) -> int:
    """The smallest power of two >= n; 1 for n <= 1."""
    return 1 << max(0, n - 1).bit_length()


def block_dim(head_dim: int) -> int:
    """Columns of a K, V or Q tile: a power of two that the matrix instructions take."""
    return max(16, next_power_of_two(head_dim))


def row_tile(rows: int, head_dim: int, element_size: int) -> int:
    """Rows (G * L folded) of one tile: all of them, if their accumulators fit the registers."""
    # float32 products are three tf32 products, whose split operands need registers as well.
    accumulators = 128 * 128 if element_size == 2 else 64 * 64
    widest = min(MAX_ROW_TILE, accumulators // block_dim(head_dim))
    return min(max(16, next_power_of_two(rows)), widest)


def key_tile(head_dim: int, element_size: int) -> int:
    """Keys of one tile of the attention sweep."""
    if element_size == 4:
        return 32 if block_dim(head_dim) <= 128 else 16
    return 64 if block_dim(head_dim) <= 128 else 32


def pipeline_stages(fixed: int, per_stage: int, target: Target, programs: int = 1) -> int:
    """How many key tiles are in flight, from what shared memory holds beside ``fixed`` bytes.

    ``programs`` share a multiprocessor.
    """
    if target.backend == "hip":
        return 2  # registers, not shared memory, hold the tiles in flight there
    return max(1, min(4, (target.shared_memory // programs - fixed) // per_stage))


def splits(units: int, tiles: int, num_sms: int, min_tiles: int = 4) -> tuple[int, int]:
    """(splits, tiles per split) of each of ``units`` independent units of work.

    As many as fill the chip once, or up to eleven more if its last wave is fuller then.
    """

    def per_split(wanted: int) -> int:
        return max(min_tiles, ceil_div(tiles, wanted))

    def cost(wanted: int) -> int:
        """Waves, times the tiles of a program and two more for its beginning and end."""
        programs = units * ceil_div(tiles, per_split(wanted))
        return ceil_div(programs, num_sms) * (per_split(wanted) + 2)

    fewest = max(1, num_sms // max(1, units))
    chosen = per_split(min(range(fewest, fewest + 12), key=cost))
    return max(1, ceil_div(tiles, chosen)), chosen


def attention(
    units: int,
    rows: int,
    keys: int,
    head_dim: int,
    element_size: int,
    target: Target,
    with_value: bool = True,
) -> Sweep:
    """The sweep of ``rows`` folded rows over ``keys``, for each of ``units`` KV heads."""
    block_rows = row_tile(rows, head_dim, element_size)
    block_keys, width = key_tile(head_dim, element_size), block_dim(head_dim)
    # The output accumulators fill the registers with one program; without them two fit, and one
    # computes while the other waits for its tile.
    resident = 1 if with_value else 2
    num_splits, tiles_per_split = splits(
        units * ceil_div(rows, block_rows), ceil_div(keys, block_keys), resident * target.num_sms
    )
    per_stage = block_keys * width * element_size * (2 if with_value else 1)
    return Sweep(
        block_rows,
        block_keys,
        width,
        num_splits,
        tiles_per_split,
        8 if block_rows == MAX_ROW_TILE or block_rows * width > 64 * 128 else 4,
        pipeline_stages((block_rows * width + 1024) * element_size, per_stage, target, resident),
    )


def prefill(units: int, keys: int, head_dim: int, element_size: int, target: Target) -> Sweep:
    """The sweeps of the whole prompt. Enough tall tiles to fill any chip: nothing is split."""
    sweep = attention(units, MAX_ROW_TILE, keys, head_dim, element_size, target)
    if target.backend == "cuda" and not target.has_tma:
        # Without the copy engine a tile in flight costs addresses in registers, which are full.
        return replace(sweep, block_keys=sweep.block_keys // 2, num_stages=3)
    return sweep


def scores(
    units: int, rows: int, keys: int, head_dim: int, element_size: int, target: Target
) -> Sweep:
    """The sweep that adds up columns: keys are the rows of the matrix product there."""
    block_rows, width = row_tile(rows, head_dim, element_size), block_dim(head_dim)
    widest = 128 if width <= 128 and element_size == 2 else key_tile(head_dim, element_size) * 2
    # All rows in one tile, as only the innermost loop is pipelined: it should be the one over keys.
    # Not on Blackwell, where the registers would hold one such program instead of two.
    hopper = target.has_tma and target.arch < 100
    if hopper and element_size == 2 and width <= 128 and MAX_ROW_TILE < rows <= 256:
        block_rows, widest = 256, 64
    fixed = (block_rows * width + 1024) * element_size
    if rows > block_rows:
        fixed *= 2  # the next row tile is loaded while this one is used
    # Two programs share a multiprocessor, or one has it alone, rather than tiles of 16 keys.
    for block_keys, resident in ((128, 2), (64, 2), (32, 2), (64, 1), (32, 1), (16, 1)):
        num_stages = pipeline_stages(fixed, block_keys * width * element_size, target, resident)
        if block_keys <= widest and num_stages >= 2:
            break
    num_splits, tiles_per_split = splits(
        units, ceil_div(keys, block_keys), resident * target.num_sms, min_tiles=2
    )
    return Sweep(
        block_rows,
        block_keys,
        width,
        num_splits,
        tiles_per_split,
        8 if block_rows == 256 or (block_keys == 128 and block_rows >= 64) else 4,
        num_stages,
    )


def paged_splits(sweep: Sweep, keys: int) -> Sweep:
    """The sweep with splits of at most ``MAX_PAGED_SPLIT`` of a request's ``keys``.

    A batch may be one long request among many short ones, whose programs end at once.
    """
    tiles = ceil_div(keys, sweep.block_keys)
    most = max(1, MAX_PAGED_SPLIT // sweep.block_keys)
    per_split = min(most, max(1, ceil_div(tiles, sweep.num_splits)))
    num_splits = max(1, ceil_div(tiles, per_split))
    return replace(sweep, num_splits=num_splits, tiles_per_split=per_split)


def paged_scores(
    units: int,
    rows: int,
    keys: int,
    head_dim: int,
    element_size: int,
    target: Target,
    quantised: bool,
) -> Sweep:
    """As :func:`scores` with a block table: addresses take registers, so there are fewer keys."""
    sweep = scores(units, rows, keys, head_dim, element_size, target)
    block_keys, num_warps, num_stages = sweep.block_keys, sweep.num_warps, sweep.num_stages
    one_row_tile = rows <= sweep.block_rows and element_size == 2 and target.backend == "cuda"
    if one_row_tile:
        block_keys = min(64, block_keys)
        num_warps = 8 if sweep.block_rows == 256 else 4
        # A third stage is the block table's and takes little memory. On Blackwell it would spill.
        num_stages = min(2, num_stages) + (1 if target.arch < 100 else 0)
    if quantised and not (one_row_tile and target.has_tma):
        # Taking bytes apart needs registers, too: a tile of half as many keys leaves them.
        block_keys = max(16, block_keys // 2)
    sweep = replace(sweep, block_keys=block_keys, num_warps=num_warps, num_stages=num_stages)
    return paged_splits(sweep, keys)


def backward(
    units: int, rows: int, keys: int, head_dim: int, element_size: int, target: Target
) -> Sweep:
    """The sweeps of the gradient: two matrix products per tile, so smaller tiles."""
    width = block_dim(head_dim)
    block_rows = min(64 if width <= 128 else 32, row_tile(rows, head_dim, element_size))
    block_keys = min(64 if element_size == 2 else 32, key_tile(head_dim, element_size))
    num_splits, tiles_per_split = splits(
        units * ceil_div(rows, block_rows), ceil_div(keys, block_keys), target.num_sms
    )
    fixed = (block_rows * width + 1024) * element_size * 2
    return Sweep(
        block_rows,
        block_keys,
        width,
        num_splits,
        tiles_per_split,
        4,
        min(2, pipeline_stages(fixed, block_keys * width * element_size * 2, target)),
    )


def combine_rows(rows: int, head_dim: int) -> int:
    """Rows of one program that adds up partial results: small, so that many programs share it."""
    return min(next_power_of_two(rows), max(1, 1024 // block_dim(head_dim)))


def select_warps(length: int, target: Target) -> int:
    """Warps of the program that holds a row of this length in registers: at most 1,024 threads."""
    most = 16 if target.backend == "hip" else 32
    return min(most, max(4, next_power_of_two(length) // 1024))


def gather_rows(head_dim: int, element_size: int) -> int:
    """Rows that one program copies: about 8 KB of each of key and value."""
    return max(1, min(64, 8192 // (block_dim(head_dim) * element_size)))
