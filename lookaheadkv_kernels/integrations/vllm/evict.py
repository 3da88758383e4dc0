"""The worker's side: remembers queries, and cuts each prompt at the start of the step after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops import column_scores, select
from .blocks import evicted_blocks, kept_entries
from .config import EvictionConfig
from .pages import Pages, compact
from .requests import RequestState, RequestTable

# Finished requests can be distinguished from waiting ones only by their age.
STATES_PER_REQUEST = 4


class Watched(NamedTuple):
    """Rows of a step whose queries are remembered for scoring."""

    start: int
    stop: int
    state: RequestState


class Step(NamedTuple):
    """One step's batch after eviction."""

    seq_lens: Tensor  # [R] int32: entries in the cache
    block_table: Tensor  # [R, max_blocks] int32, the emptied blocks rolled out of each row
    watched: list[Watched]


class Layer(NamedTuple):
    """What eviction needs of an attention layer."""

    kv_cache: Tensor
    scale: float


# (pages of all layers by name, blocks, prompt tokens, entries to keep) -> the positions that stay
# in each layer, int32 [1, Hkv, K]
Chooser = Callable[[Mapping[str, Pages], Tensor, int, int], Mapping[str, Tensor]]


class Evictor:
    """Cuts the prompts of one engine's worker.

    Args:
        config: policy and budget.
        block_size: tokens per block.
        max_num_seqs: most requests that are scheduled at once.
        layers: returns each attention layer's cache and scale, by name; called at an eviction.
        chooser: chooses the positions that stay; None: the prompt's last rows do, as in SnapKV.
    """

    def __init__(
        self,
        config: EvictionConfig,
        block_size: int,
        max_num_seqs: int,
        layers: Callable[[], Mapping[str, Layer]],
        chooser: Chooser | None = None,
    ) -> None:
        self.config = config
        self.block_size = block_size
        self._layers = layers
        self._chooser = chooser
        self._requests = RequestTable(STATES_PER_REQUEST * max_num_seqs)

    def step(self, batch: Any) -> Step:
        """Cut prompts that ended in an earlier step; returns where each row's cache now lies.

        Runs before this step writes anything. ``batch`` is vLLM's CommonAttentionMetadata.
        """
        seq_lens = batch.seq_lens.clone()
        block_table = batch.block_table_tensor.clone()
        starts = batch.query_start_loc_cpu.tolist()
        watched = []
        for row in range(batch.num_reqs):
            num_new = starts[row + 1] - starts[row]
            blocks = batch.block_table_tensor[row]
            if num_new == 0 or int(blocks[0]) == 0:
                continue  # padding, or a dry run: block 0 belongs to nobody
            length = int(seq_lens[row])
            computed = length - num_new
            before, after = (max(n - 1, 0) // self.block_size for n in (computed, length))
            state = self._requests.step(computed, int(blocks[before]), int(blocks[after]))
            if bool(batch.is_prefilling[row]):
                if self._chooser is None:
                    watched.append(Watched(starts[row], starts[row + 1], state))
            elif state.evicted_blocks is None:
                self._cut(state, blocks, computed)
            if emptied := state.evicted_blocks:
                seq_lens[row] -= emptied * self.block_size
                block_table[row] = blocks.roll(-emptied)
        return Step(seq_lens, block_table, watched)

    def _cut(self, state: RequestState, blocks: Tensor, num_prompt: int) -> None:
        """Move what stays of a prompt to the end of its slots, in every layer."""
        sizes = (num_prompt, self.config.budget, self.block_size)
        state.evicted_blocks = evicted_blocks(*sizes)
        queries, state.queries = state.queries, {}
        if state.evicted_blocks == 0:
            return
        keep = kept_entries(*sizes)
        own = blocks[: -(-num_prompt // self.block_size)]
        layers = self._layers()
        pages = {name: Pages(layer.kv_cache) for name, layer in layers.items()}
        if self._chooser is not None:
            chosen = self._chooser(pages, own, num_prompt, keep)
        else:
            chosen = {
                name: self._snapkv(queries[name], pages[name].keys(own, num_prompt), keep, scale)
                for name, (_, scale) in layers.items()
            }
        indices = torch.stack([chosen[name] for name in pages])
        compact(list(pages.values()), indices, own, num_prompt - keep)

    def _snapkv(
        self,
        query: Tensor,  # [rows, Hq, D]
        key: Tensor,  # [1, Hkv, length, D]
        keep: int,
        scale: float,
    ) -> Tensor:
        """The rows' own positions and those that they attend to: int32 [1, Hkv, keep]."""
        rows = query.shape[0]
        scores = column_scores(query.transpose(0, 1)[None], key, scale=scale)
        # The rows' own positions have no score: they are pinned, and the max-pool skips -inf.
        scores = F.pad(scores, (0, rows), value=-torch.inf)
        return select(scores, keep, pool_kernel=self.config.pool_kernel, num_recent=rows)
