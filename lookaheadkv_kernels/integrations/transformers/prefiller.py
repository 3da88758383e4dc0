"""Prefills for policies on a transformers model: in one pass, or row by row with drafts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...policies import base
from ...policies.base import Policy, Watcher
from ...policies.budget import Budget
from .cache import Choice, EvictableCache, EvictableLayer, LayerRows, Observer
from .layer_cut import Cut, evict_layer
from .prompt import Prompt
from .ragged import RaggedLayer
from .reading import Reading
from .rows import join_rows, split_rows
from .runner import Runner, in_turn, watching


@dataclass
class Prefilled:
    """A prompt that went through the model and an eviction; the cache carries all of it.

    Attributes:
        cache: what is left, ready to decode from.
        logits: [B, vocabulary] of every row's last token, from the full cache.
        choices: what each layer's eviction chose; empty unless the prefiller records it.
    """

    cache: EvictableCache
    logits: Tensor
    choices: list[Choice] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cache.end_prompt(self.logits, self.choices)


def choices_of(layers: Sequence[EvictableLayer], scores: Sequence[Tensor | None]) -> list[Choice]:
    """What was chosen in freshly cut layers, and by which scores."""
    choices = []
    for layer, of_layer in zip(layers, scores, strict=True):
        assert layer.kept_positions is not None
        choices.append(Choice(layer.kept_positions, of_layer))
    return choices


class ModelPrefiller(Runner):
    """A transformers model that prefills for policies.

    It implements :class:`~lookaheadkv_kernels.policies.base.Prefiller`, which documents its
    methods, for :class:`Prompt`, :class:`EvictableCache` and :class:`Prefilled`.

    Args:
        model: a causal language model to which our attention is attached.
        chunk: prefill in parts of so many tokens; None runs the prompt at once.
        record: remember what was chosen, scores included.
    """

    def __init__(
        self, model: PreTrainedModel, chunk: int | None = None, *, record: bool = False
    ) -> None:
        super().__init__(model, chunk)
        self.record = record

    def one_pass(
        self, policy: Policy, prompt: Prompt, budget: Budget, cache: EvictableCache | None
    ) -> Prefilled:
        """Prefill, and cut every layer as soon as its attention over the last chunk is done."""
        cache = _going_on(cache, policy)
        watcher = policy.start(self.num_layers)
        if watcher is not None and cache.layers:
            _check_no_holes(cache, prompt, policy)
        before = [0] * prompt.batch if not cache.layers else cache.layers[0].row_lengths().tolist()
        counts = prompt.row_counts()
        seen = [old + count for old, count in zip(before, counts, strict=True)]
        choices: list[Choice] = []

        def cut_by(num_new: int, num_draft: int) -> Observer:
            cut = Cut(
                policy,
                budget,
                self.num_layers,
                seen=seen,
                new=[min(count, num_new) for count in counts],
                num_draft=num_draft,
                num_dropped=num_draft,
                watcher=watcher,
            )

            def observe(rows: LayerRows) -> None:
                kept = evict_layer(cut, rows)
                if self.record:
                    choices.extend(choices_of([rows.layer], [kept.scores]))

            return observe

        watch = watching([] if watcher is None else [watcher])
        modules = policy.modules
        num_learned = 0 if modules is None else modules.config.num_lookahead
        extend = modules is not None and not (policy.mode == "appended" and self.takes_rows_along)
        with self.ropes.restored_on_error():
            with self.ropes.reading(prompt.position_ids):
                last = self.all_but_last(prompt, cache, policy.window, watch)
                if extend:
                    logits = self.forward(last, cache, observer=watch)
                else:
                    observer = in_turn(watch, cut_by(last.num_tokens, num_learned))
                    logits = self.forward(last, cache, observer=observer, modules=modules)
            if modules is not None and extend:
                ends = prompt.position_ids[:, -1:]
                self.lookahead_pass(cache, modules, cut_by(0, num_learned), ends)
        return Prefilled(cache, logits, choices)

    def row_by_row(
        self,
        policy: Policy,
        prompt: Prompt,
        cache: EvictableCache | None,
        finish: Callable[[base.Reading], None],
    ) -> Prefilled:
        """Read each row's prompt by itself, let ``finish`` draft and cut, and join what is left."""
        cache = _going_on(cache, policy)
        parts = split_rows(cache) or [EvictableCache() for _ in range(prompt.batch)]
        readings = []
        with self.ropes.restored_on_error():
            for row, part in enumerate(parts):
                watcher = policy.start(self.num_layers)
                watchers: dict[Policy, Watcher] = {} if watcher is None else {policy: watcher}
                reading = Reading(self, prompt.row(row), part, row, policy.window, watchers)
                finish(reading)
                readings.append(reading)
        # As after a prompt of the longest row, whatever was drafted behind it.
        self.ropes.restore(max(readings, key=lambda reading: reading.end).ropes)
        length = (cache.get_seq_length() if cache.layers else 0) + prompt.num_tokens
        cache.layers = join_rows(parts, length).layers
        choices: list[Choice] = []
        if self.record:
            # Rows of different lengths have no common shape of scores.
            scores = readings[0].scores if prompt.batch == 1 else [None] * self.num_layers
            choices = choices_of(cache.layers, scores)
        return Prefilled(cache, torch.cat([reading.logits for reading in readings]), choices)


def _going_on(cache: EvictableCache | None, policy: Policy) -> EvictableCache:
    """The cache that a prompt is appended to; refuses a later turn that cannot be cut."""
    if cache is None:
        return EvictableCache()
    if cache.layers and not policy.takes_turns:
        raise ValueError(f"policy {policy.name!r}: later turns are not supported")
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
