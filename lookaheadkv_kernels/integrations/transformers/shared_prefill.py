"""One reading of a prompt, cut by many policies and budgets: what `evaluation` compares them on.

Each cut keeps what the policy's own prefill would keep: the prompt's rows never see lookahead rows
or drafts, so they need not be run again. Nothing is evicted while the prompt is read, so all of its
cache is held until the last cut.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...lookahead import LookaheadModules
from ...policies.base import Budget, Policy
from .batched_decoding import decode_together
from .cache import EvictableCache
from .prompt import Prompt, make_prompt
from .reading import Reading
from .runner import Choice, Prefilled, Runner


class _SharedReading(Reading):
    """A prompt that was read for several cuts; drafts and answers are written once for all."""

    budgets: Sequence[Budget]  # of the policy that is at work

    def __init__(
        self, runner: Runner, prompt: Prompt, policies: Sequence[Policy], states: dict[int, Any]
    ) -> None:
        self._memory: dict[Any, Any] = {}
        watching = [policy for policy in policies if policy.watches]

        def watch(cache: EvictableCache, index: int, query: Tensor, scale: float) -> None:
            for policy in watching:
                key = cache.layers[index].keys
                policy.observe(states[id(policy)], index, query, key, None, scale)

        window = max((policy.window for policy in policies), default=0)
        super().__init__(
            runner, prompt, EvictableCache(), 0, window, watch=watch if watching else None
        )

    def fork(self, budgets: Sequence[Budget], cache: EvictableCache | None = None) -> Reading:
        """The same reading, to be cut; ``cache`` in place of its own."""
        other = copy.copy(self)
        other.cache = (self.cache if cache is None else cache).fork()
        other.scores, other.budgets = [], budgets
        return other

    def answer(self, max_tokens: int) -> list[int]:
        """See :meth:`Reading.answer`."""
        key = ("answer", max_tokens)
        if key not in self._memory:
            self._memory[key] = super().answer(max_tokens)
        return list(self._memory[key])

    def answer_of(self, model: Any, max_tokens: int, name: str) -> list[int]:
        """See :meth:`Reading.answer_of`."""
        key = ("answer of", id(model), max_tokens)
        if key not in self._memory:
            self._memory[key] = super().answer_of(model, max_tokens, name)
        return list(self._memory[key])

    def draft_queries(self, policy: Policy, budget: Budget, max_tokens: int) -> list[Tensor]:
        """See :meth:`Reading.draft_queries`; the drafts of all budgets are decoded together."""
        key = ("drafts", id(policy), max_tokens)
        if key not in self._memory:
            self._memory[key] = self._drafts(policy, max_tokens)
        drafts: list[list[Tensor]] = self._memory[key]
        return drafts[_place(budget, self.budgets)]

    def _drafts(self, policy: Policy, max_tokens: int) -> list[list[Tensor]]:
        """A draft for each budget, and in it a tensor for each layer."""
        caches = [self.cache.fork() for _ in self.budgets]
        for cache, budget in zip(caches, self.budgets, strict=True):
            for index, query in enumerate(self._queries):
                self._evict(cache, index, query, policy, budget, 0)
        parts: list[list[list[Tensor]]] = [[[] for _ in self._queries] for _ in caches]

        def record(cache: Any, index: int, query: Tensor, scale: float) -> None:
            for place, row in enumerate(cache.rows):
                parts[row][index].append(query[place : place + 1])

        logits = self.logits.expand(len(caches), -1)
        decode_together(self.runner.model, caches, logits, max_tokens, observer=record)
        return [[torch.cat(layer, dim=2) for layer in draft] for draft in parts]


def _place(budget: Budget, budgets: Sequence[Budget]) -> int:
    """Where a budget stands; 1 entry is not the ratio 1.0."""
    return [(type(other), other) for other in budgets].index((type(budget), budget))


class SharedPrefill:
    """One prompt, read once, for many (policy, budget) cells.

    To a policy it is the runner of its prefill.

    Args:
        model: a transformers model with our attention attached.
        input_ids: [1, N].
        cells: policies and budgets that :meth:`cut` will be asked for.
        chunk: read in parts of so many tokens.
        record: remember what each cut chose, scores included.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Any,
        input_ids: Tensor,
        cells: Sequence[tuple[Policy, Budget]],
        *,
        chunk: int | None = None,
        record: bool = False,
    ) -> None:
        self.record = record
        self._cells = list(cells)
        self._runner = Runner(model, chunk)
        policies = list({id(policy): policy for policy, _ in cells}.values())
        self._states = {
            id(policy): policy.start(self._runner.num_layers)
            for policy in policies
            if policy.watches
        }
        self._prompt = make_prompt(input_ids)
        self._reading = _SharedReading(self._runner, self._prompt, policies, self._states)
        self._ahead: dict[int, tuple[EvictableCache, list[Tensor]]] = {}

    @torch.no_grad()
    def cut(self, policy: Policy, budget: Budget) -> EvictableCache:
        """What a policy leaves at a budget, as :meth:`Eviction.prefill` gives it."""
        done: Prefilled = policy.prefill(self, self._prompt, budget, None)
        done.cache.logits, done.cache.choices = done.logits, done.choices
        return done.cache

    def one_pass(
        self,
        policy: Policy,
        prompt: Prompt,
        budget: Budget,
        *,
        cache: EvictableCache | None = None,
        modules: LookaheadModules | None = None,
        mode: str = "appended",
    ) -> Prefilled:
        """See :meth:`Runner.one_pass`; both modes keep the same entries."""
        reading = self._reading
        if modules is None:
            part = reading.fork([budget])
            part.cut_all(policy, budget, self._states.get(id(policy)))
            return self._prefilled(part)
        if id(modules) not in self._ahead:
            self._ahead[id(modules)] = self._lookahead(modules)
        ahead, queries = self._ahead[id(modules)]
        part = reading.fork([budget], ahead)
        part.cut_by(policy, budget, queries)
        return self._prefilled(part)

    def _lookahead(self, modules: LookaheadModules) -> tuple[EvictableCache, list[Tensor]]:
        """The cache with the lookahead rows behind the prompt, and their queries."""
        cache = self._reading.cache.fork()
        queries: list[Tensor] = []

        def remember(cache: EvictableCache, index: int, query: Tensor, scale: float) -> None:
            queries.append(query)

        self._runner.lookahead_pass(cache, modules, remember, self._prompt.position_ids[:, -1:])
        return cache, queries

    def row_by_row(
        self, policy: Policy, prompt: Prompt, cache: EvictableCache | None, finish: Any
    ) -> Prefilled:
        """See :meth:`Runner.row_by_row`."""
        part = self._reading.fork([b for other, b in self._cells if other is policy])
        finish(part)
        return self._prefilled(part)

    def _prefilled(self, part: Reading) -> Prefilled:
        choices = []
        if self.record:
            choices = [
                Choice(layer.kept_positions, scores)
                for layer, scores in zip(part.cache.layers, part.scores, strict=True)
            ]
        return Prefilled(part.cache, part.logits, choices)
