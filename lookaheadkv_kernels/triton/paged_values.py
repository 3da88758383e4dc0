"""Checks of the values in a paged call: as csrc/core/validate_paged_values.cpp, in the same words.

On the CPU alone, which is the interpreter: on a GPU looking would wait for the device.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from .._checks import Checks


def check_batch(
    checks: Checks,
    cu_seqlens_q: Tensor,  # [R + 1] int32
    seq_lens: Tensor,  # [R] int32
    num_rows: int,
    max_seq_len: int,
    num_queries: int | None,  # T, where the op knows it
) -> None:
    """Ascending starts, and room for every request's rows and entries."""
    if seq_lens.device.type != "cpu":
        return
    starts = cu_seqlens_q.tolist()
    for r, start in enumerate(starts):
        least = starts[r - 1] if r else 0
        if start < least or (num_queries is not None and start > num_queries):
            allowed = f"at least {least}" if num_queries is None else f"in {least}..T={num_queries}"
            checks.fail(f"cu_seqlens_q[{r}] must be {allowed}, got {start}")
    for r, length in enumerate(seq_lens.tolist()):
        rows = min(num_rows, starts[r + 1] - starts[r])
        if not rows <= length <= max_seq_len:
            checks.fail(
                f"seq_lens[{r}] must be in {rows} (its observation rows).."
                f"max_seq_len={max_seq_len}, got {length}"
            )


def check_blocks(
    checks: Checks,
    block_table: Tensor,  # [R, max_blocks] int32
    seq_lens: Tensor,  # [R] int32
    num_blocks: int,
    page_size: int,
) -> None:
    """Every block that a request's length needs."""
    if block_table.device.type != "cpu":
        return
    max_blocks = block_table.shape[1]
    for r, length in enumerate(seq_lens.tolist()):
        pages = -(-length // page_size)
        if pages > max_blocks:
            checks.fail(
                f"seq_lens[{r}] must be at most max_blocks * page_size = "
                f"{max_blocks * page_size}, got {length}"
            )
        for i, block in enumerate(block_table[r, :pages].tolist()):
            if not 0 <= block < num_blocks:
                checks.fail(
                    f"block_table[{r}, {i}] must be in 0..num_blocks-1={num_blocks - 1}, "
                    f"got {block}"
                )


def check_budgets(
    checks: Checks,
    budgets: Tensor | None,  # [R] int32
    cu_seqlens_q: Tensor,  # [R + 1] int32
    seq_lens: Tensor,  # [R] int32
    num_rows: int,
    max_budget: int,
    pinned: int,
    keep_observation: bool,
) -> None:
    """No more than max_budget, and room for what is pinned where a request is cut."""
    if budgets is None or budgets.device.type != "cpu":
        return
    starts, lengths = cu_seqlens_q.tolist(), seq_lens.tolist()
    for r, budget in enumerate(budgets.tolist()):
        if budget > max_budget:
            checks.fail(f"budgets[{r}] must be at most max_budget={max_budget}, got {budget}")
        rows = min(num_rows, starts[r + 1] - starts[r])
        entries = lengths[r] - (0 if keep_observation else rows)
        needed = pinned + (rows if keep_observation else 0)
        if rows > 0 and 0 < budget < min(entries, needed):
            what = "L + num_sink + num_recent" if keep_observation else "num_sink + num_recent"
            checks.fail(f"budgets[{r}] must be 0 or hold {what} = {needed} entries, got {budget}")


class CompactionValues:
    """The values of one compaction on the CPU; all int32."""

    def __init__(
        self,
        checks: Checks,
        indices: Tensor,  # [num_layers, R, Hkv or 1, K]
        kept_lens: Tensor,  # [num_layers, R]
        src: Tensor,  # [R, max_blocks]
        dst: Tensor,  # [R, max_dst_blocks]
        dst_start: Tensor | None,  # [num_layers, R]
        num_blocks: int,
        page_size: int,
    ) -> None:
        self.checks, self.indices, self.kept_lens = checks, indices, kept_lens
        self.tables = {"src_block_table": src.tolist(), "dst_block_table": dst.tolist()}
        self.widths = {"src_block_table": src.shape[1], "dst_block_table": dst.shape[1]}
        self.dst_start, self.num_blocks, self.page_size = dst_start, num_blocks, page_size

    def check(self) -> None:
        """Indices ascend and lie in the tables; no block is written that another place needs."""
        layers, requests = self.indices.shape[:2]
        for layer in range(layers):
            for r in range(requests):
                self._check_entries(layer, r)
        for layer in range(layers):
            self._check_hazards(layer, requests)

    def _count(self, layer: int, r: int) -> int:
        kept, slots = int(self.kept_lens[layer, r]), self.indices.shape[3]
        none = kept <= 0 or slots == 0 or int(self.indices[layer, r, 0, 0]) < 0
        return 0 if none else min(kept, slots)

    def _start(self, layer: int, r: int) -> int:
        return 0 if self.dst_start is None else int(self.dst_start[layer, r])

    def _in_table(self, name: str, r: int, position: int, what: str) -> None:
        place, width = position // self.page_size, self.widths[name]
        if not 0 <= place < width:
            self.checks.fail(
                f"{what} must be in 0..{name}'s max_blocks * page_size - 1 = "
                f"{width * self.page_size - 1}, got {position}"
            )
        block = self.tables[name][r][place]
        if not 0 <= block < self.num_blocks:
            self.checks.fail(
                f"{name}[{r}, {place}] must be in 0..num_blocks-1={self.num_blocks - 1}, "
                f"got {block}"
            )

    def _check_entries(self, layer: int, r: int) -> None:
        count, start = self._count(layer, r), self._start(layer, r)
        for j in range(count):
            more = f" + {j}" if j else ""
            self._in_table("dst_block_table", r, start + j, f"dst_start[{layer}, {r}]{more}")
        if int(self.kept_lens[layer, r]) <= 0 or self.indices.shape[3] == 0:
            return
        for h, row in enumerate(self.indices[layer, r].tolist()):
            if count == 0 and row[0] >= 0:
                self.checks.fail(
                    f"indices[{layer}, {r}, {h}, 0] must be -1 like that of head 0, got {row[0]}"
                )
            before = -1
            for j, index in enumerate(row[:count]):
                name = f"indices[{layer}, {r}, {h}, {j}]"
                if index <= before:
                    self.checks.fail(
                        f"{name} must be above {before} (kept positions ascend), got {index}"
                    )
                self._in_table("src_block_table", r, index, name)
                before = index

    def _entries(self, layer: int, r: int) -> Iterator[tuple[int, int, bool]]:
        """(source place, destination place, whether the entry moves)."""
        count, start, page = self._count(layer, r), self._start(layer, r), self.page_size
        src, dst = self.tables["src_block_table"][r], self.tables["dst_block_table"][r]
        for row in self.indices[layer, r, :, :count].tolist():
            for j, index in enumerate(row):
                source, target = divmod(index, page), divmod(start + j, page)
                moves = (src[source[0]], source[1]) != (dst[target[0]], target[1])
                yield source[0], target[0], moves

    def _reads(self, layer: int, r: int) -> Iterator[int]:
        """Places that a request needs: those of its entries, or all where it takes no part."""
        if self._count(layer, r) > 0:
            for source, _, _ in self._entries(layer, r):
                yield source
            return
        pages = -(-int(self.kept_lens[layer, r]) // self.page_size)
        yield from range(min(pages, self.widths["src_block_table"]))

    def _check_hazards(self, layer: int, requests: int) -> None:
        writers: dict[int, tuple[int, int]] = {}
        src, dst = self.tables["src_block_table"], self.tables["dst_block_table"]
        for r in range(requests):
            for _, place, moves in self._entries(layer, r):
                block = dst[r][place]
                if moves and writers.setdefault(block, (r, place)) != (r, place):
                    self._fail_hazard(block, writers[block][0], "written", r)
        for r in range(requests):
            for place in self._reads(layer, r):
                block = src[r][place]
                if writers.get(block, (r, place)) != (r, place):
                    self._fail_hazard(block, writers[block][0], "read", r)

    def _fail_hazard(self, block: int, writer: int, verb: str, other: int) -> None:
        self.checks.fail(
            f"block {block} would be written for request {writer} and {verb} for request {other} "
            f"at another place: give request {writer} blocks of its own in dst_block_table"
        )
