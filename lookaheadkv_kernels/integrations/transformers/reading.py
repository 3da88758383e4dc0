"""A row's prompt, read whole, from which a policy can write drafts before it cuts the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...policies.base import Budget, Policy
from .cache import EvictableCache, Observer
from .compat import cache_argument
from .greedy import end_tokens, greedy_answer
from .layer_cut import evict_layer
from .prompt import Prompt

if TYPE_CHECKING:
    from .runner import Runner


class Reading:
    """One row's prompt in the model's cache, nothing evicted yet.

    Every pass of these methods but the cuts leaves the cache as it is.

    Args:
        runner: runs the model.
        prompt: one row without padding.
        cache: what earlier turns left of it; the prompt is appended.
        row: which row of the batch it is.
        window: newest queries to remember.
        watch: sees every chunk of the prompt in every layer.

    Attributes:
        logits: [1, vocabulary] of the last prompt token.
        scores: what the cut's policy scored, per layer.
    """

    def __init__(
        self,
        runner: Runner,
        prompt: Prompt,
        cache: EvictableCache,
        row: int,
        window: int,
        *,
        watch: Observer | None = None,
    ) -> None:
        self.runner = runner
        self.prompt = prompt
        self.cache = cache
        self.row = row
        self.scores: list[Tensor | None] = []
        self._later_turn = bool(cache.layers)
        self._queries: list[Tensor] = []
        self._scales: list[float] = []

        def remember(cache: EvictableCache, index: int, query: Tensor, scale: float) -> None:
            # Cloned: a view would keep the whole prompt's queries.
            self._queries.append(query[:, :, max(0, query.shape[2] - window) :].clone())
            self._scales.append(scale)

        self.logits = runner.whole(prompt, cache, window, remember, watch)
        self.num_tokens = int(cache.layers[0].row_lengths()[0])

    def answer(self, max_tokens: int) -> list[int]:
        """The model's own greedy answer from the full cache, its end token included."""
        return self._greedy(self.cache, max_tokens, None)

    def draft_queries(self, policy: Policy, budget: Budget, max_tokens: int) -> list[Tensor]:
        """Queries [1, Hq, m, D] of every layer, of a draft written from a cut copy of the cache.

        Each of the m <= ``max_tokens`` tokens is fed once, the end token too.

        Args:
            policy: cuts the copy, by the remembered queries.
            budget: of the cut.
            max_tokens: longest draft.
        """
        cache = self.cache.fork()
        for index, query in enumerate(self._queries):
            self._evict(cache, index, query, policy, budget, 0)
        queries: list[list[Tensor]] = [[] for _ in self._queries]

        def record(cache: EvictableCache, index: int, query: Tensor, scale: float) -> None:
            queries[index].append(query)

        self._greedy(cache, max_tokens, record)
        return [torch.cat(parts, dim=2) for parts in queries]

    def _greedy(self, cache: EvictableCache, max_tokens: int, observer: Any) -> list[int]:
        behind = int(self.prompt.position_ids[0, -1]) + 1
        return greedy_answer(
            self.runner.model,
            cache,
            self.logits[0],
            max_tokens,
            position=behind,
            observer=observer,
        )

    def _tokens(self, tokens: list[int]) -> Prompt:
        """Tokens right behind the prompt."""
        device = self.prompt.position_ids.device
        first = int(self.prompt.position_ids[0, -1]) + 1
        positions = torch.arange(first, first + len(tokens), device=device)
        return Prompt(torch.tensor([tokens], device=device), None, None, positions[None])

    @torch.no_grad()
    def answer_of(self, model: Any, max_tokens: int, name: str) -> list[int]:
        """Another model's greedy answer to the same tokens, its end token included.

        Args:
            model: any causal language model of transformers with the same tokenizer.
            max_tokens: longest answer.
            name: of the policy that asks.

        Raises:
            ValueError: the prompt is not made of tokens, or is only the end of a conversation; the
                answer has tokens that the target does not know.
        """
        if self.prompt.input_ids is None or self._later_turn:
            raise ValueError(
                f"policy {name!r}: the draft model needs the token ids of all the text"
            )
        ends, known = end_tokens(model), self.runner.model.get_input_embeddings().num_embeddings
        argument = cache_argument(model)
        tokens: list[int] = []
        ids, cache = self.prompt.input_ids.to(model.device), None
        while len(tokens) < max_tokens and not (tokens and tokens[-1] in ends):
            out = model(ids, **{argument: cache}, use_cache=True, logits_to_keep=1)
            cache = out[argument]
            tokens.append(int(out.logits[0, -1].argmax()))
            ids = torch.tensor([tokens[-1:]], device=model.device)
        if max(tokens) >= known:
            raise ValueError(
                f"policy {name!r}: the draft model wrote token {max(tokens)}, the model has "
                f"{known}: they must share a tokenizer"
            )
        return tokens

    def cut(self, policy: Policy, budget: Budget, window: int, draft: list[Tensor]) -> None:
        """Evict by the newest ``window`` prompt queries and the draft's behind them.

        ``policy.evict`` gets them as ``query``, and the number of draft rows as ``state``.
        """
        for index, rows in enumerate(draft):
            newest = self._newest(index, window)
            query = torch.cat([newest, rows], dim=2)
            self._evict(self.cache, index, query, policy, budget, 0, rows.shape[2])

    def cut_all(self, policy: Policy, budget: Budget, state: Any) -> None:
        """Evict every layer by its newest prompt queries, as many as the policy's window."""
        for index in range(len(self._queries)):
            query = self._newest(index, policy.window)
            self._evict(self.cache, index, query, policy, budget, 0, state)

    def cut_by(self, policy: Policy, budget: Budget, queries: list[Tensor]) -> None:
        """Evict by rows whose entries stand behind the prompt in the cache; those are dropped."""
        for index, query in enumerate(queries):
            self._evict(self.cache, index, query, policy, budget, query.shape[2])

    def cut_behind(self, policy: Policy, budget: Budget, window: int, tokens: list[int]) -> None:
        """Run tokens behind the prompt and evict each layer by their rows; they are dropped.

        ``policy.evict`` gets the newest ``window`` prompt queries and the tokens' as ``query``,
        keys and values of prompt and tokens, and the number of tokens as ``state``.
        """

        def observe(cache: EvictableCache, index: int, query: Tensor, scale: float) -> None:
            both = torch.cat([self._newest(index, window), query], dim=2)
            self._evict(cache, index, both, policy, budget, len(tokens), len(tokens))

        self.runner.forward(self._tokens(tokens), self.cache, observer=observe, logits=False)

    def _newest(self, index: int, window: int) -> Tensor:
        query = self._queries[index]
        return query[:, :, max(0, query.shape[2] - window) :]

    def _evict(
        self,
        cache: EvictableCache,
        index: int,
        query: Tensor,
        policy: Policy,
        budget: Budget,
        num_dropped: int,
        state: Any = None,
    ) -> None:
        kept = evict_layer(
            cache,
            index,
            query,
            self._scales[index],
            policy,
            budget,
            num_layers=self.runner.num_layers,
            seen=[self.num_tokens],
            new=[query.shape[2] - num_dropped],
            num_lookahead=num_dropped,
            state=state,
        )
        if cache is self.cache:
            self.scores.append(kept.scores)
