"""Runs a model's prefill with something watching its layers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...lookahead import LookaheadModules
from ...policies.base import Budget, Policy
from .cache import EvictableCache, Observer
from .compat import cache_argument
from .layer_cut import evict_layer
from .lora import lora_on_last_rows
from .prompt import Prompt
from .ragged import RaggedLayer
from .reading import Reading
from .rows import join_rows, split_rows


@dataclass
class Prefilled:
    """A prompt that went through the model and an eviction.

    Attributes:
        cache: what is left, ready to decode from.
        logits: [B, vocabulary] of every row's last token, from the full cache.
        choices: what each layer's eviction chose; empty unless the runner records it.
    """

    cache: EvictableCache
    logits: Tensor
    choices: list[Choice] = field(default_factory=list)


class Choice(NamedTuple):
    """What one layer's eviction chose, and why."""

    positions: Tensor  # [B, Hkv, K] int32, in the row's text; -1 in empty slots
    scores: Tensor | None  # [B, Hkv, N], one for each entry there was, if the policy has scores


def chunk_bounds(num_tokens: int, chunk: int | None, least_last: int) -> list[tuple[int, int]]:
    """Cut ``num_tokens`` into parts of ``chunk``, the last one at least ``least_last`` long."""
    if chunk is None or chunk >= num_tokens:
        return [(0, num_tokens)]
    starts = list(range(0, num_tokens, chunk))
    while len(starts) > 1 and num_tokens - starts[-1] < least_last:
        starts.pop()
    return list(zip(starts, [*starts[1:], num_tokens], strict=True))


def _going_on(cache: EvictableCache | None, policy: Policy) -> EvictableCache:
    """The cache that a prompt is appended to; refuses one that cannot be cut again."""
    if cache is None:
        return EvictableCache()
    if any(isinstance(layer, RaggedLayer) for layer in cache.layers):
        raise ValueError(
            f"policy {policy.name!r}: later turns are not supported on a cache whose heads keep "
            "different numbers of entries"
        )
    return cache


def _check_no_holes(cache: EvictableCache, prompt: Prompt, policy: Policy) -> None:
    """Refuse holes between real entries: what a policy watches is padded at the left alone."""
    valid = [layer.valid for layer in cache.layers if layer.valid is not None]
    if prompt.mask is not None or any(bool((v[:, 1:] < v[:, :-1]).any()) for v in valid):
        raise ValueError(f"policy {policy.name!r} cannot score a padded batch in a later turn")


class Runner:
    """A transformers model, and how it is run for eviction.

    Args:
        model: a causal language model to which our attention is attached.
        chunk: prefill in parts of so many tokens; None runs the prompt at once.
        record: remember what was chosen, scores included.
    """

    def __init__(self, model: Any, chunk: int | None = None, *, record: bool = False) -> None:
        self.model = model
        self.chunk = chunk
        self.record = record
        self.num_layers: int = model.config.num_hidden_layers
        self._cache_argument = cache_argument(model)

    def forward(
        self,
        prompt: Prompt,
        cache: EvictableCache,
        *,
        observer: Observer | None = None,
        modules: LookaheadModules | None = None,
        logits: bool = True,
    ) -> Tensor:
        """Append a prompt's tokens, and lookahead rows behind them if ``modules`` are given.

        Returns the logits [B, vocabulary] of the last prompt token, or without ``logits`` of any.
        """
        last = prompt.num_tokens - 1
        inputs: dict[str, Any] = {
            "position_ids": prompt.position_ids,
            "attention_mask": None if prompt.mask is None else prompt.mask.long(),
        }
        if modules is None:
            inputs["input_ids"] = prompt.input_ids
            inputs["inputs_embeds"] = prompt.inputs_embeds
        else:
            inputs |= self._with_lookahead(prompt, modules)
        cache.observer = observer
        try:
            with lora_on_last_rows(self.model, modules) if modules else nullcontext():
                out = self._run(inputs, cache, last if logits else None)
        finally:
            cache.observer = None
        return out

    def _run(self, inputs: dict[str, Any], cache: EvictableCache, keep: int | None) -> Tensor:
        arguments = {**inputs, self._cache_argument: cache, "use_cache": True}
        if keep is None:
            out: Tensor = self.model.get_decoder()(**arguments).last_hidden_state
        else:
            rows = torch.tensor([keep], device=inputs["position_ids"].device)
            out = self.model(**arguments, logits_to_keep=rows).logits[:, -1]
        return out

    def _with_lookahead(self, prompt: Prompt, modules: LookaheadModules) -> dict[str, Any]:
        rows = modules.config.num_lookahead
        embeds = prompt.inputs_embeds
        if embeds is None:
            embeds = self.model.get_input_embeddings()(prompt.input_ids)
        learned = modules.embeddings.to(embeds).expand(prompt.batch, -1, -1)
        ahead = torch.arange(1, rows + 1, device=embeds.device)
        mask = prompt.mask
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(prompt.batch, rows)], dim=1).long()
        return {
            "inputs_embeds": torch.cat([embeds, learned], dim=1),
            "position_ids": torch.cat(
                [prompt.position_ids, prompt.position_ids[:, -1:] + ahead], dim=1
            ),
            "attention_mask": mask,
        }

    def lookahead_pass(
        self,
        cache: EvictableCache,
        modules: LookaheadModules,
        observer: Observer,
        last: Tensor,  # [B, 1] int64
    ) -> None:
        """The lookahead rows alone over a finished prompt's cache, behind positions ``last``."""
        empty = Prompt(
            None,
            modules.embeddings.new_empty(len(last), 0, modules.config.model.hidden_size).to(
                self.model.device, self.model.dtype
            ),
            None,
            last,
        )
        inputs = self._with_lookahead(empty, modules)
        inputs["position_ids"] = inputs["position_ids"][:, 1:]
        cache.observer = observer
        try:
            with lora_on_last_rows(self.model, modules):
                self._run(inputs, cache, None)
        finally:
            cache.observer = None

    def whole(
        self,
        prompt: Prompt,
        cache: EvictableCache,
        least_last: int,
        observer: Observer,
        watch: Observer | None = None,
    ) -> Tensor:
        """Append a prompt and evict nothing; the observer sees the last chunk, ``watch`` all.

        Returns the logits [B, vocabulary] of the last token.
        """

        def last(cache: EvictableCache, index: int, query: Tensor, scale: float) -> None:
            if watch is not None:
                watch(cache, index, query, scale)
            observer(cache, index, query, scale)

        bounds = chunk_bounds(prompt.num_tokens, self.chunk, least_last)
        for start, stop in bounds[:-1]:
            self.forward(prompt.part(start, stop), cache, observer=watch, logits=False)
        return self.forward(prompt.part(*bounds[-1]), cache, observer=last)

    def row_by_row(
        self,
        policy: Policy,
        prompt: Prompt,
        cache: EvictableCache | None,
        finish: Callable[[Reading], None],
    ) -> Prefilled:
        """Read each row's prompt by itself, let ``finish`` draft and cut, and join what is left.

        Args:
            policy: whose ``window`` newest queries are remembered.
            prompt: the new tokens.
            cache: what earlier turns left; starts empty when None.
            finish: cuts a row's cache.
        """
        cache = _going_on(cache, policy)
        parts = split_rows(cache) or [EvictableCache() for _ in range(prompt.batch)]
        readings = []
        for row, part in enumerate(parts):
            reading = Reading(self, prompt.row(row), part, row, policy.window)
            finish(reading)
            readings.append(reading)
        length = (cache.get_seq_length() if cache.layers else 0) + prompt.num_tokens
        cache.layers = join_rows(parts, length).layers
        choices: list[Choice] = []
        if self.record:
            # Rows of different lengths have no common shape of scores.
            scores = readings[0].scores if prompt.batch == 1 else [None] * self.num_layers
            choices = [
                Choice(layer.kept_positions, of_layer)
                for layer, of_layer in zip(cache.layers, scores, strict=True)
            ]
        return Prefilled(cache, torch.cat([reading.logits for reading in readings]), choices)

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
        """Prefill, and cut every layer as soon as its attention over the last chunk is done.

        Args:
            policy: who chooses what stays.
            prompt: the new tokens.
            budget: entries to keep; see :func:`~lookaheadkv_kernels.policies.base.check_budget`.
            cache: what earlier turns left; starts empty when None.
            modules: lookahead modules, for a policy that scores with lookahead rows.
            mode: with ``modules``: ``"appended"`` or ``"extend"``.
        """
        cache = _going_on(cache, policy)
        if policy.watches and cache.layers:
            _check_no_holes(cache, prompt, policy)
        before = [0] * prompt.batch if not cache.layers else cache.layers[0].row_lengths().tolist()
        counts = prompt.row_counts()
        choices: list[Choice] = []
        state = policy.start(self.num_layers)

        def watch(cache: EvictableCache, index: int, query: Tensor, scale: float) -> None:
            layer = cache.layers[index]
            leftpad = None
            if layer.valid is not None:
                leftpad = (~layer.valid).sum(dim=1).to(torch.int32)
            policy.observe(state, index, query, layer.keys, leftpad, scale)

        def cut(num_new: int, num_lookahead: int) -> Observer:
            def observe(cache: EvictableCache, index: int, query: Tensor, scale: float) -> None:
                if policy.watches:
                    watch(cache, index, query, scale)
                chosen = evict_layer(
                    cache,
                    index,
                    query,
                    scale,
                    policy,
                    budget,
                    num_layers=self.num_layers,
                    seen=[old + count for old, count in zip(before, counts, strict=True)],
                    new=[min(count, num_new) for count in counts],
                    num_lookahead=num_lookahead,
                    state=state,
                    lse=cache.lse,
                )
                if self.record:
                    choices.append(Choice(cache.layers[index].kept_positions, chosen.scores))

            return observe

        bounds = chunk_bounds(prompt.num_tokens, self.chunk, policy.window)
        for start, stop in bounds[:-1]:
            part = prompt.part(start, stop)
            self.forward(part, cache, observer=watch if policy.watches else None, logits=False)
        start, stop = bounds[-1]
        part = prompt.part(start, stop)
        if modules is None:
            logits = self.forward(part, cache, observer=cut(stop - start, 0))
        elif mode == "appended":
            rows = modules.config.num_lookahead
            logits = self.forward(part, cache, observer=cut(stop - start, rows), modules=modules)
        else:
            logits = self.forward(part, cache)
            observer = cut(0, modules.config.num_lookahead)
            self.lookahead_pass(cache, modules, observer, prompt.position_ids[:, -1:])
        return Prefilled(cache, logits, choices)
