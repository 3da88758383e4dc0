"""One reading of a prompt, cut by many policies and budgets, which `evaluation` compares on it.

Each cut keeps what the policy's own prefill would keep: the prompt's rows never see lookahead rows
or drafts, so they need not be run again. Nothing is evicted while the prompt is read, so all of its
cache is held until the last cut.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...lookahead import LookaheadModules
from ...policies import base
from ...policies.base import Policy, Watcher
from ...policies.budget import Budget
from .batched_decoding import BatchedCache, decode_together
from .cache import EvictableCache, LayerRows
from .prefiller import Prefilled, choices_of
from .prompt import Prompt, make_prompt
from .reading import Reading
from .runner import Runner


class _SharedReading(Reading):
    """A prompt that is read once for several cuts; drafts and answers are written once for all.

    Args:
        runner: runs the model.
        prompt: one row.
        window: newest queries to remember.
        watchers: per policy, who sees every chunk of the prompt in every layer.
    """

    budgets: Sequence[Budget]  # of the policy whose cut is under way

    def __init__(
        self, runner: Runner, prompt: Prompt, window: int, watchers: Mapping[Policy, Watcher]
    ) -> None:
        super().__init__(runner, prompt, EvictableCache(), 0, window, watchers)
        self._answers: dict[Hashable, list[int]] = {}
        self._drafts: dict[tuple[Policy, int], list[list[Tensor]]] = {}

    def fork(self, budgets: Sequence[Budget], cache: EvictableCache | None = None) -> Reading:
        """The same reading, to be cut; ``cache`` in place of its own."""
        other = copy.copy(self)
        other.cache = (self.cache if cache is None else cache).fork()
        other.scores, other.budgets = [], budgets
        return other

    def answer(self, max_tokens: int) -> list[int]:
        """See :meth:`Reading.answer`."""
        if max_tokens not in self._answers:
            self._answers[max_tokens] = super().answer(max_tokens)
        return list(self._answers[max_tokens])

    def answer_of(self, model: nn.Module, max_tokens: int, name: str) -> list[int]:
        """See :meth:`Reading.answer_of`."""
        key = (model, max_tokens)
        if key not in self._answers:
            self._answers[key] = super().answer_of(model, max_tokens, name)
        return list(self._answers[key])

    def draft_queries(self, policy: Policy, budget: Budget, max_tokens: int) -> list[Tensor]:
        """See :meth:`Reading.draft_queries`; the drafts of all budgets are decoded together."""
        key = (policy, max_tokens)
        if key not in self._drafts:
            self._drafts[key] = self._all_drafts(policy, max_tokens)
        return self._drafts[key][_place(budget, self.budgets)]

    def _all_drafts(self, policy: Policy, max_tokens: int) -> list[list[Tensor]]:
        """A draft for each budget, and in it a tensor for each layer."""
        caches = [self._cut_copy(policy, budget) for budget in self.budgets]
        parts: list[list[list[Tensor]]] = [[[] for _ in self._queries] for _ in caches]

        def record(rows: LayerRows) -> None:
            assert isinstance(rows.cache, BatchedCache)
            for place, row in enumerate(rows.cache.rows):
                parts[row][rows.index].append(rows.query[place : place + 1])

        logits = self.logits.expand(len(caches), -1)
        decode_together(self.runner.model, caches, logits, max_tokens, observer=record)
        return [[torch.cat(layer, dim=2) for layer in draft] for draft in parts]


def _place(budget: Budget, budgets: Sequence[Budget]) -> int:
    """Where a budget stands; 1 entry is not the ratio 1.0."""
    return [(type(other), other) for other in budgets].index((type(budget), budget))


class SharedPrefill:
    """One prompt, read once, for many (policy, budget) cells.

    To a policy it is a :class:`~lookaheadkv_kernels.policies.base.Prefiller`.

    Args:
        model: a transformers model with our attention attached.
        input_ids: int64 [1, N].
        cells: policies and budgets that :meth:`cut` will be asked for.
        chunk: read in parts of so many tokens; None reads the prompt at once.
        record: remember what each cut chose, scores included.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        cells: Sequence[tuple[Policy, Budget]],
        *,
        chunk: int | None = None,
        record: bool = False,
    ) -> None:
        self.record = record
        self._cells = list(cells)
        self._runner = Runner(model, chunk)
        policies = dict.fromkeys(policy for policy, _ in cells)
        started = {policy: policy.start(self._runner.num_layers) for policy in policies}
        watchers = {policy: one for policy, one in started.items() if one is not None}
        window = max((policy.window for policy in policies), default=0)
        self._prompt = make_prompt(input_ids)
        self._reading = _SharedReading(self._runner, self._prompt, window, watchers)
        self._ahead: dict[LookaheadModules, tuple[EvictableCache, list[Tensor]]] = {}

    @torch.no_grad()
    def cut(self, policy: Policy, budget: Budget) -> EvictableCache:
        """What a policy leaves at a budget, as :meth:`Eviction.prefill` returns it."""
        ropes, after_prompt = self._runner.ropes, self._reading.ropes
        # Answers to other cuts may have been written in between; drafts are for this one.
        ropes.restore(after_prompt)
        try:
            return policy.prefill(self, self._prompt, budget, None).cache
        finally:
            ropes.restore(after_prompt)

    def one_pass(
        self, policy: Policy, prompt: Prompt, budget: Budget, cache: EvictableCache | None
    ) -> Prefilled:
        """Cut a copy of what was read; both of a policy's modes keep the same entries."""
        modules = policy.modules
        if modules is None:
            part = self._reading.fork([budget])
            part.cut(policy, budget, policy.window)
        else:
            if modules not in self._ahead:
                self._ahead[modules] = self._lookahead(modules)
            ahead, queries = self._ahead[modules]
            part = self._reading.fork([budget], ahead)
            part.cut(policy, budget, 0, queries, stored=True)
        return self._prefilled(part)

    def _lookahead(self, modules: LookaheadModules) -> tuple[EvictableCache, list[Tensor]]:
        """The cache with the lookahead rows behind the prompt, and their queries per layer."""
        cache = self._reading.cache.fork()
        queries: list[Tensor] = []
        last = self._prompt.position_ids[:, -1:]
        self._runner.lookahead_pass(cache, modules, lambda rows: queries.append(rows.query), last)
        return cache, queries

    def row_by_row(
        self,
        policy: Policy,
        prompt: Prompt,
        cache: EvictableCache | None,
        finish: Callable[[base.Reading], None],
    ) -> Prefilled:
        """Let ``finish`` draft from and cut a copy of what was read."""
        part = self._reading.fork([budget for other, budget in self._cells if other is policy])
        finish(part)
        return self._prefilled(part)

    def _prefilled(self, part: Reading) -> Prefilled:
        choices = choices_of(part.cache.layers, part.scores) if self.record else []
        return Prefilled(part.cache, part.logits, choices)
