"""The worker's side of the vLLM plugin, driven step by step as vLLM drives it, without vLLM.

The scheduler here hands out blocks, takes freed ones back at the same moment as the plugin's
manager, and gives them to others in the same step: whatever eviction leaves must survive that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lookaheadkv_kernels import score_and_evict
from lookaheadkv_kernels.integrations.vllm import evicted_blocks, held_blocks, kept_entries
from lookaheadkv_kernels.integrations.vllm.config import EvictionConfig
from lookaheadkv_kernels.integrations.vllm.evict import Evictor, Layer, Step
from lookaheadkv_kernels.integrations.vllm.pages import Pages

HEADS, KV_HEADS, DIM, BLOCK, LAYERS = 4, 2, 8, 4, 2
BUDGET, WINDOW = 9, 6
SCALE = 0.3


@dataclass
class Request:
    """A prompt, what was generated for it, and where it stands."""

    prompt: int
    query: Tensor  # [layers, tokens, Hq, D]
    key: Tensor  # [layers, tokens, Hkv, D]
    value: Tensor
    computed: int = 0
    blocks: list[int] = field(default_factory=list)  # as the worker sees them: never shortened
    freed: int = 0


class Scheduler:
    """Blocks, and steps over the evictor."""

    def __init__(self, num_blocks: int, chooser: Any = None) -> None:
        self.free = list(range(num_blocks - 1, 0, -1))
        self.memory = [
            torch.full((num_blocks, KV_HEADS, BLOCK, 2 * DIM), torch.nan) for _ in range(LAYERS)
        ]
        layers = {f"layer{i}": Layer(cache, SCALE) for i, cache in enumerate(self.memory)}
        config = EvictionConfig(budget=BUDGET, window=WINDOW)
        self.evictor = Evictor(config, BLOCK, 8, lambda: layers, chooser)

    def step(self, scheduled: dict[int, tuple[Request, int]]) -> Step:
        """Run ``count`` more tokens of each request."""
        for request, count in scheduled.values():
            if request.computed >= request.prompt and not request.freed:
                request.freed = evicted_blocks(request.prompt, BUDGET, BLOCK)
                self.free += request.blocks[: request.freed]
            while len(request.blocks) * BLOCK < request.computed + count:
                request.blocks.append(self.free.pop())
        requests = list(scheduled.values())
        table = torch.zeros(len(requests) + 1, 40, dtype=torch.int32)  # a padded row at the end
        starts = [0]
        for row, (request, count) in enumerate(requests):
            table[row, : len(request.blocks)] = torch.tensor(request.blocks)
            starts.append(starts[-1] + count)
        batch = SimpleNamespace(
            num_reqs=len(requests) + 1,
            seq_lens=torch.tensor([r.computed + n for r, n in requests] + [0], dtype=torch.int32),
            block_table_tensor=table,
            query_start_loc_cpu=torch.tensor([*starts, starts[-1]], dtype=torch.int32),
            is_prefilling=torch.tensor([r.computed < r.prompt for r, _ in requests] + [False]),
        )
        result = self.evictor.step(batch)
        for request, count in requests:  # only now does anybody write
            self.write(request, count)
        for layer in range(LAYERS):
            query = torch.cat([r.query[layer, r.computed : r.computed + n] for r, n in requests])
            for start, stop, state in result.watched:
                state.watch(f"layer{layer}", query[start:stop], WINDOW)
        for request, count in requests:
            request.computed += count
        return result

    def write(self, request: Request, count: int) -> None:
        """K and V of the new tokens, at their logical slots."""
        for layer, cache in enumerate(self.memory):
            pages = Pages(cache)
            for position in range(request.computed, request.computed + count):
                block, slot = request.blocks[position // BLOCK], position % BLOCK
                pages.key[block, slot] = request.key[layer, position]
                pages.value[block, slot] = request.value[layer, position]

    def stored(self, layer: int, blocks: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """K and V [Hkv, length, D] that attention sees through a row of the block table."""
        pages = Pages(self.memory[layer])
        return pages.keys(blocks, length)[0], pages.values(blocks, length)[0]


def request_of(prompt: int, new: int = 30) -> Request:
    shape = (LAYERS, prompt + new)
    key, value = torch.randn(2, *shape, KV_HEADS, DIM)
    return Request(prompt, torch.randn(*shape, HEADS, DIM), key, value)


def expected(request: Request, layer: int) -> tuple[Tensor, Tensor]:
    """What attention over all tokens so far must find: the kept prompt, then the rest."""
    prompt, tokens = request.prompt, request.computed
    whole = [t[layer, :tokens].transpose(0, 1) for t in (request.key, request.value)]
    if tokens <= prompt:
        return whole[0], whole[1]
    keep = kept_entries(prompt, BUDGET, BLOCK)
    kept = score_and_evict(
        request.query[layer, :prompt][-WINDOW:].transpose(0, 1)[None],
        whole[0][None, :, :prompt],
        whole[1][None, :, :prompt],
        keep,
        scale=SCALE,
        keep_observation=True,
    )
    key, value = (
        torch.cat([part[0], full[:, prompt:]], dim=1)
        for part, full in zip((kept.key, kept.value), whole, strict=True)
    )
    return key, value


def check(scheduler: Scheduler, step: Step, requests: list[Request]) -> None:
    """Attention of every row sees what it must."""
    for row, request in enumerate(requests):
        length = int(step.seq_lens[row])
        assert -(-length // BLOCK) == (
            held_blocks(request.computed, request.prompt, BUDGET, BLOCK)
            if request.computed > request.prompt
            else -(-request.computed // BLOCK)
        )
        for layer in range(LAYERS):
            key, value = scheduler.stored(layer, step.block_table[row], length)
            want_key, want_value = expected(request, layer)
            assert torch.equal(key, want_key) and torch.equal(value, want_value)
    assert int(step.seq_lens[-1]) == 0


@pytest.mark.parametrize("chunk", [1000, 16, 7, 3])
def test_mixed_lengths_in_chunks(chunk: int) -> None:
    """Prompts shorter than the budget, of whole blocks, and longer; chunks below the window.

    Not every request takes part in every step.
    """
    requests = [request_of(n) for n in (5, 9, 12, 13, 40, 23, 31)]
    scheduler = Scheduler(80)
    random = Random(chunk)
    while unfinished := [r for r in requests if r.computed < r.prompt + 9]:
        some = random.sample(unfinished, random.randint(1, len(unfinished)))
        scheduled = {
            i: (r, min(chunk, r.prompt - r.computed) if r.computed < r.prompt else 1)
            for i, r in enumerate(some)
        }
        check(scheduler, scheduler.step(scheduled), some)
    used = {b for r in requests for b in r.blocks[r.freed :]}
    assert used.isdisjoint(scheduler.free)


def test_blocks_given_away_in_the_step_that_evicts() -> None:
    """The second request is prefilled into the first one's blocks while that is being evicted."""
    first, second = request_of(40), request_of(28)
    scheduler = Scheduler(13)
    check(scheduler, scheduler.step({0: (first, 40)}), [first])
    step = scheduler.step({0: (first, 1), 1: (second, 28)})
    assert set(second.blocks) & set(first.blocks[: first.freed])
    check(scheduler, step, [first, second])
    for _ in range(6):
        check(scheduler, scheduler.step({0: (first, 1), 1: (second, 1)}), [first, second])


def test_a_preempted_request_starts_again() -> None:
    """Its answer so far is prefilled with its prompt, across the border between the two."""
    request = request_of(37)
    scheduler = Scheduler(40)
    for count in (37, 1, 1, 1, 1, 1):
        scheduler.step({0: (request, count)})
    scheduler.free += request.blocks[request.freed :]
    request.blocks, request.freed, request.computed = [], 0, 0
    scheduler.step({0: (request, 30)})
    scheduler.step({0: (request, 12)})  # 7 of the prompt, 5 of the answer
    step = scheduler.step({0: (request, 1)})
    # All 42 tokens were cut as a prompt; the scheduler freed what the prompt's 37 allow.
    assert int(step.seq_lens[0]) == kept_entries(42, BUDGET, BLOCK) + 1
    assert evicted_blocks(42, BUDGET, BLOCK) >= request.freed
    as_prompt = Request(42, request.query, request.key, request.value, request.computed)
    for layer in range(LAYERS):
        key, value = scheduler.stored(layer, step.block_table[0], int(step.seq_lens[0]))
        want_key, want_value = expected(as_prompt, layer)
        assert torch.equal(key, want_key) and torch.equal(value, want_value)


def test_a_chooser_says_what_stays() -> None:
    """As the lookahead rows do: no queries of the prompt are needed."""
    asked: list[tuple[list[int], int, int]] = []

    def odd_positions(pages: Any, blocks: Tensor, num_prompt: int, keep: int) -> dict[str, Tensor]:
        asked.append((blocks.tolist(), num_prompt, keep))
        chosen = torch.arange(num_prompt)[1::2][:keep].to(torch.int32)
        return {name: chosen.expand(1, KV_HEADS, keep) for name in pages}

    request = request_of(30)
    scheduler = Scheduler(20, odd_positions)
    scheduler.step({0: (request, 30)})
    step = scheduler.step({0: (request, 1)})
    keep = kept_entries(30, BUDGET, BLOCK)
    assert asked == [(request.blocks[:8], 30, keep)]
    key, _ = scheduler.stored(1, step.block_table[0], keep + 1)
    kept = request.key[1, :30][1::2][:keep].transpose(0, 1)
    assert torch.equal(key[:, :keep], kept)
    assert torch.equal(key[:, keep], request.key[1, 30])


def test_tokens_that_nobody_computed_are_refused() -> None:
    """A cache hit: the request's first step begins behind tokens that another one wrote."""
    request = request_of(30)
    request.computed = 8
    request.blocks = [3, 4]
    with pytest.raises(RuntimeError, match="8 tokens in the cache was never seen"):
        Scheduler(20).step({0: (request, 22)})
