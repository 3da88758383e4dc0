"""Runs a model's passes for eviction: prompts, in chunks or whole, and lookahead rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TypedDict

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...lookahead import LookaheadModules
from ...policies.base import Chunk, Watcher
from .cache import EvictableCache, LayerRows, Observer
from .compat import cache_argument
from .lora import lora_on_last_rows
from .prompt import Prompt
from .rotary import LengthRopes
from .structure import decoder_of
from .whole_pass import modules_over_rows


class Inputs(TypedDict, total=False):
    """Arguments of a model's forward."""

    input_ids: Tensor | None
    inputs_embeds: Tensor | None
    position_ids: Tensor
    attention_mask: Tensor | None


def chunk_bounds(num_tokens: int, chunk: int | None, least_last: int) -> list[tuple[int, int]]:
    """(start, stop) of parts of ``chunk`` tokens, the last one at least ``least_last`` long."""
    if chunk is None or chunk >= num_tokens:
        return [(0, num_tokens)]
    starts = list(range(0, num_tokens, chunk))
    while len(starts) > 1 and num_tokens - starts[-1] < least_last:
        starts.pop()
    return list(zip(starts, [*starts[1:], num_tokens], strict=True))


def watching(watchers: Sequence[Watcher]) -> Observer | None:
    """An observer that shows every chunk to policies' watchers; None if there are none."""
    if not watchers:
        return None

    def observe(rows: LayerRows) -> None:
        layer = rows.layer
        leftpad = None
        if layer.valid is not None:
            leftpad = (~layer.valid).sum(dim=1).to(torch.int32)
        for watcher in watchers:
            watcher.observe(Chunk(rows.index, rows.query, layer.keys, rows.scale, leftpad))

    return observe


def in_turn(first: Observer | None, second: Observer) -> Observer:
    """An observer that shows every layer to both, one after the other."""
    if first is None:
        return second

    def observe(rows: LayerRows) -> None:
        first(rows)
        second(rows)

    return observe


class Runner:
    """A transformers model, and how its passes are run for eviction.

    Args:
        model: a causal language model to which our attention is attached.
        chunk: prefill in parts of so many tokens; None runs the prompt at once.

    Attributes:
        ropes: the model's rotary embeddings that depend on the length of the text.
        takes_rows_along: learned rows may run in one pass with the prompt without changing it.

    Raises:
        ValueError: in chunks the model would compute something else than at once.
    """

    def __init__(self, model: PreTrainedModel, chunk: int | None = None) -> None:
        self.model = model
        self.chunk = chunk
        self.num_layers: int = decoder_of(model).config.num_hidden_layers
        self._cache_argument = cache_argument(model)
        over_rows = modules_over_rows(decoder_of(model))
        if chunk is not None and over_rows:
            raise ValueError(
                f"chunk={chunk}: {over_rows[0]} computes statistics over all rows of a pass, so "
                "that a prompt in chunks would be another one"
            )
        self.ropes = LengthRopes(decoder_of(model))
        self.takes_rows_along = self.ropes.fixable and not over_rows

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

        Returns the logits [B, vocabulary] of the last prompt token; without ``logits`` the hidden
        states, which nobody needs.
        """
        last = prompt.num_tokens - 1
        inputs: Inputs = {
            "position_ids": prompt.position_ids,
            "attention_mask": None if prompt.mask is None else prompt.mask.long(),
        }
        if modules is None:
            inputs["input_ids"] = prompt.input_ids
            inputs["inputs_embeds"] = prompt.inputs_embeds
        else:
            inputs = self._with_lookahead(prompt, modules)
        lora = nullcontext() if modules is None else lora_on_last_rows(self.model, modules)
        with self.ropes.reading(prompt.position_ids), cache.watched(observer), lora:
            return self._run(inputs, cache, last if logits else None)

    def _run(self, inputs: Inputs, cache: EvictableCache, keep: int | None) -> Tensor:
        arguments = {**inputs, self._cache_argument: cache, "use_cache": True}
        if keep is None:
            out: Tensor = self.model.get_decoder()(**arguments).last_hidden_state
        else:
            # On several devices that of the hidden states is not known; the CPU's fits any.
            spread = hasattr(self.model, "hf_device_map")
            device = torch.device("cpu") if spread else inputs["position_ids"].device
            rows = torch.tensor([keep], device=device)
            out = self.model(**arguments, logits_to_keep=rows).logits[:, -1]
        return out

    def _with_lookahead(self, prompt: Prompt, modules: LookaheadModules) -> Inputs:
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
                last.device, self.model.dtype
            ),
            None,
            last,
        )
        inputs = self._with_lookahead(empty, modules)
        inputs["position_ids"] = inputs["position_ids"][:, 1:]
        behind = self.ropes.reading(last, behind=True)
        with behind, cache.watched(observer), lora_on_last_rows(self.model, modules):
            self._run(inputs, cache, None)

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
        with self.ropes.reading(prompt.position_ids):
            last = self.all_but_last(prompt, cache, least_last, watch)
            return self.forward(last, cache, observer=in_turn(watch, observer))

    def all_but_last(
        self, prompt: Prompt, cache: EvictableCache, least_last: int, watch: Observer | None
    ) -> Prompt:
        """Append all chunks but the last, which has ``least_last`` tokens at least; returns it."""
        bounds = chunk_bounds(prompt.num_tokens, self.chunk, least_last)
        for start, stop in bounds[:-1]:
            self.forward(prompt.part(start, stop), cache, observer=watch, logits=False)
        return prompt.part(*bounds[-1])
