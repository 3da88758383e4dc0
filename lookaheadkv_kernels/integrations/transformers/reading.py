"""One row's full cache, from which draft-based policies generate before they evict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...policies.base import Policy, Watcher
from ...policies.budget import Budget
from .cache import EvictableCache, LayerRows, Observer
from .compat import cache_argument
from .devices import input_device
from .greedy import end_tokens, greedy_answer
from .layer_cut import Cut, evict_layer
from .prompt import Prompt
from .runner import Runner, watching


class Reading:
    """One row's prompt in the model's cache, nothing evicted yet.

    Every pass of these methods but the cuts leaves the cache as it is. It implements
    :class:`~lookaheadkv_kernels.policies.base.Reading`, which documents its methods.

    Args:
        runner: runs the model.
        prompt: one row without padding.
        cache: what earlier turns left of the row; the prompt is appended.
        row: which row of the batch it is.
        window: newest queries to remember.
        watchers: per policy, who sees every chunk of the prompt in every layer.

    Attributes:
        logits: [1, vocabulary] of the last prompt token.
        scores: per layer, what the cut's policy scored.
        end: position right behind the prompt.
        ropes: what rotary embeddings that depend on the length of the text were after the prompt.
    """

    def __init__(
        self,
        runner: Runner,
        prompt: Prompt,
        cache: EvictableCache,
        row: int,
        window: int,
        watchers: Mapping[Policy, Watcher],
    ) -> None:
        self.runner = runner
        self.prompt = prompt
        self.cache = cache
        self.row = row
        self.scores: list[Tensor | None] = []
        self._watchers = watchers
        self._later_turn = bool(cache.layers)
        self._queries: list[Tensor] = []
        self._scales: list[float] = []

        def remember(rows: LayerRows) -> None:
            # Cloned: a view would keep the whole prompt's queries.
            self._queries.append(_newest(rows.query, window).clone())
            self._scales.append(rows.scale)

        watch = watching(list(watchers.values()))
        self.logits = runner.whole(prompt, cache, window, remember, watch)
        self.num_tokens = int(cache.layers[0].row_lengths()[0])
        self.end = int(prompt.position_ids[0, -1]) + 1
        self.ropes = runner.ropes.state()

    def answer(self, max_tokens: int) -> list[int]:
        """The model's own greedy answer from the full cache, its end token included."""
        return self._greedy(self.cache, max_tokens, None)

    def draft_queries(self, policy: Policy, budget: Budget, max_tokens: int) -> list[Tensor]:
        """Queries [1, Hq, m, D] per layer of a draft written from a copy that ``policy`` cut."""
        cache = self._cut_copy(policy, budget)
        queries: list[list[Tensor]] = [[] for _ in self._queries]

        def record(rows: LayerRows) -> None:
            queries[rows.index].append(rows.query)

        self._greedy(cache, max_tokens, record)
        return [torch.cat(parts, dim=2) for parts in queries]

    def _cut_copy(self, policy: Policy, budget: Budget) -> EvictableCache:
        """A copy of the cache, cut by all remembered queries."""
        cache, cut = self.cache.fork(), self._plan(policy, budget)
        for index, query in enumerate(self._queries):
            evict_layer(cut, LayerRows(cache, index, query, self._scales[index]))
        return cache

    def _greedy(
        self, cache: EvictableCache, max_tokens: int, observer: Observer | None
    ) -> list[int]:
        return greedy_answer(
            self.runner.model,
            cache,
            self.logits[0],
            max_tokens,
            position=self.end,
            observer=observer,
        )

    @torch.no_grad()
    def answer_of(self, model: nn.Module, max_tokens: int, name: str) -> list[int]:
        """Another model's greedy answer to the same tokens, its end token included."""
        if self.prompt.input_ids is None or self._later_turn:
            raise ValueError(
                f"policy {name!r}: the draft model needs the token ids of all the text"
            )
        ends, known = end_tokens(model), self.runner.model.get_input_embeddings().num_embeddings
        argument = cache_argument(model)
        device = input_device(model)
        tokens: list[int] = []
        ids, cache = self.prompt.input_ids.to(device), None
        while len(tokens) < max_tokens and not (tokens and tokens[-1] in ends):
            out = model(ids, **{argument: cache}, use_cache=True, logits_to_keep=1)
            cache = out[argument]
            tokens.append(int(out.logits[0, -1].argmax()))
            ids = torch.tensor([tokens[-1:]], device=device)
        if max(tokens) >= known:
            raise ValueError(
                f"policy {name!r}: the draft model wrote token {max(tokens)}, the model has "
                f"{known}: they must share a tokenizer"
            )
        return tokens

    def cut(
        self,
        policy: Policy,
        budget: Budget,
        window: int,
        draft: Sequence[Tensor] | None = None,
        *,
        stored: bool = False,
    ) -> None:
        """Evict every layer by the prompt's newest queries and those of a draft behind them.

        With ``stored`` the draft's entries stand behind the prompt in the cache; they are dropped.
        """
        num_draft = 0 if draft is None else draft[0].shape[2]
        cut = self._plan(policy, budget, num_draft, num_draft if stored else 0)
        for index in range(len(self._queries)):
            self._evict(cut, index, window, None if draft is None else draft[index])

    def cut_behind(
        self, policy: Policy, budget: Budget, window: int, tokens: Sequence[int]
    ) -> None:
        """Run tokens behind the prompt and evict each layer by their rows, which are dropped."""
        cut = self._plan(policy, budget, len(tokens), len(tokens))

        def observe(rows: LayerRows) -> None:
            self._evict(cut, rows.index, window, rows.query)

        ids = torch.tensor([list(tokens)], device=self.prompt.position_ids.device)
        positions = torch.arange(self.end, self.end + len(tokens), device=ids.device)
        behind = Prompt(ids, None, None, positions[None])
        self.runner.forward(behind, self.cache, observer=observe, logits=False)

    def _plan(
        self, policy: Policy, budget: Budget, num_draft: int = 0, num_dropped: int = 0
    ) -> Cut:
        return Cut(
            policy,
            budget,
            self.runner.num_layers,
            seen=[self.num_tokens],
            num_draft=num_draft,
            num_dropped=num_dropped,
            watcher=self._watchers.get(policy),
            first_row=self.row,
        )

    def _evict(self, cut: Cut, index: int, window: int, draft: Tensor | None) -> None:
        """Cut one layer by the ``window`` newest prompt queries and the draft's behind them."""
        query = _newest(self._queries[index], window)
        if draft is not None:
            query = torch.cat([query, draft], dim=2)
        kept = evict_layer(cut, LayerRows(self.cache, index, query, self._scales[index]))
        self.scores.append(kept.scores)


def _newest(query: Tensor, count: int) -> Tensor:
    """The newest ``count`` of the rows [B, Hq, q, D], or all if there are fewer."""
    return query[:, :, max(0, query.shape[2] - count) :]
