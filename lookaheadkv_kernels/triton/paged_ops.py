"""The torch ops on paged caches on Triton; as ops.py, after _outputs_paged.py.

See lookaheadkv_kernels/paged.py for the meaning.
"""

from __future__ import annotations

from torch import Tensor

from .._checks import MAX_POSITIONS
from .._checks_paged import Compaction, PagedInputs, PagedSelection
from . import compact
from .paged_plan import Plan, plan
from .paged_scores import paged_column_scores as score_room
from .paged_select import paged_select as select_room
from .problem import PagedProblem, contiguous


def _plan(
    inputs: PagedInputs, selection: PagedSelection | None = None, kept_lens: Tensor | None = None
) -> Plan:
    """The plan of an op that scores; a request's length is clamped to what its blocks can hold."""
    num_blocks, page_size = inputs.key_cache.shape[:2]
    most_keys = min(int(inputs.max_seq_len), inputs.block_table.shape[1] * page_size)
    return plan(
        inputs.cu_seqlens_q,
        inputs.seq_lens,
        inputs.num_rows,
        num_queries=inputs.query.shape[0],
        most_keys=most_keys if num_blocks else 0,
        selection=selection,
        kept_lens=kept_lens,
    )


def paged_column_scores(inputs: PagedInputs, scores: Tensor) -> None:
    """Writes scores."""
    score_room(PagedProblem.of(inputs, _plan(inputs)), inputs.lse, scores)


def paged_select(
    scores: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    selection: PagedSelection,
    results: tuple[Tensor, Tensor],
) -> None:
    """Writes indices and kept_lens."""
    indices, kept_lens = results
    lengths = plan(
        cu_seqlens_q,
        seq_lens,
        selection.num_rows,
        num_queries=MAX_POSITIONS,
        most_keys=scores.shape[2],
        selection=selection,
        kept_lens=kept_lens,
    )
    select_room(scores, lengths, selection, indices)


def paged_score_and_select(
    inputs: PagedInputs, selection: PagedSelection, results: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Writes indices, kept_lens and scores."""
    indices, kept_lens, scores = results
    lengths = _plan(inputs, selection, kept_lens)
    score_room(PagedProblem.of(inputs, lengths), inputs.lse, scores)
    select_room(scores, lengths, selection, indices)


paged_score_and_select_out = paged_score_and_select


def compact_kv_cache(compaction: Compaction) -> None:
    """Moves the kept entries of every cache."""
    source = compaction.src_block_table.contiguous()
    target = contiguous(compaction.dst_block_table)
    compact.compact_kv_cache(
        compaction.caches,
        compaction.indices.contiguous(),
        compaction.kept_lens.contiguous(),
        source,
        source if target is None else target,
        contiguous(compaction.dst_start),
    )
