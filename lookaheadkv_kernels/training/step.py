"""One training sample: ground truth and loss for the price of about one prefill.

The prompt's rows never see the lookahead rows, so one prefill without gradient gives the keys and
values that both passes of paper section 3.2 read: the response's rows for the ground truth, and the
lookahead rows, which alone are back-propagated through.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..integrations.transformers.cache import EvictableCache, EvictableLayer, LayerRows, Observer
from ..integrations.transformers.compat import cache_argument, decoder_layers
from ..integrations.transformers.greedy import greedy_answer, next_logits
from ..integrations.transformers.lora import lora_on_last_rows, lora_on_layer
from ..integrations.transformers.runner import in_turn
from ..lookahead import LookaheadModules
from ..ops import column_scores

# Far below any score that matters, far above the smallest float32.
LEAST_SCORE = 1e-20


class Target(NamedTuple):
    """What the lookahead rows of one sample learn to predict."""

    cache: EvictableCache  # keys and values of the prompt, all layers
    scores: list[Tensor]  # per layer [Hq, N], normalised ground-truth importance
    response_ids: list[int]


def per_head_scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Mean attention of the L rows to each prompt key, per query head: [Hq, N], differentiable.

    ``query`` [1, Hq, L, D] and ``key`` [1, Hkv, N + L, D]. The op takes the mean over the heads of
    a group; here the group becomes the batch, on keys expanded without a copy.
    """
    _, heads, rows, head_dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    grouped = query.view(kv_heads, group, rows, head_dim).transpose(0, 1)
    scores = column_scores(grouped, key.expand(group, -1, -1, -1), scale=scale)
    return scores.transpose(0, 1).reshape(heads, -1)


def normalised(scores: Tensor) -> Tensor:
    """Scores as distributions over the prompt: every row sums to 1."""
    return scores / scores.sum(dim=-1, keepdim=True).clamp(min=LEAST_SCORE)


def kl_divergence(target: Tensor, prediction: Tensor) -> Tensor:
    """Paper eq. 5 for one layer: KL(Norm(target) || Norm(prediction)), mean over heads [Hq, N]."""
    target, prediction = normalised(target), normalised(prediction)
    logs = target.clamp(min=LEAST_SCORE).log() - prediction.clamp(min=LEAST_SCORE).log()
    return (target * logs).sum(dim=-1).mean()


@torch.no_grad()
def ground_truth(
    model: Any,
    prompt_ids: Sequence[int],
    response_ids: Sequence[int] | None,
    max_response: int,
    *,
    observer: Observer | None = None,
) -> Target:
    """Importance of every prompt key to the response (paper section 2), per layer and query head.

    Args:
        model: a transformers model with our attention attached.
        prompt_ids: N token ids.
        response_ids: the response; None lets the model answer greedily.
        max_response: longest response, in tokens.
        observer: sees the response's rows too, over a cache of prompt and response.
    """
    cache = EvictableCache()
    logits = next_logits(model, prompt_ids, cache)
    if response_ids is None:
        response = greedy_answer(model, cache, logits, max_response)
    else:
        response = list(response_ids[:max_response])
    scores: list[Tensor] = []

    def score(rows: LayerRows) -> None:
        scores.append(normalised(per_head_scores(rows.query, rows.layer.keys, rows.scale)))

    whole = cache.fork()
    with whole.watched(in_turn(observer, score)):
        next_logits(model, response, whole)
    return Target(cache, scores, response)


class _PrefixLayer(EvictableLayer):
    """Entries that a pass reads and never changes, so that the pass can be recomputed."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Prefix and new rows, without storing the latter."""
        return (
            torch.cat([self.keys, key_states], dim=-2),
            torch.cat([self.values, value_states], dim=-2),
        )


class _PrefixCache(EvictableCache):
    """A prompt's cache, and the loss of each layer's lookahead rows against its target."""

    def __init__(self, prefix: EvictableCache, targets: Sequence[Tensor]) -> None:
        super().__init__()
        self._targets = targets
        self.losses: dict[int, Tensor] = {}
        for layer in prefix.layers:
            other = _PrefixLayer()
            other.__dict__.update(layer.__dict__)
            self.layers.append(other)

    def attend(
        self,
        index: int,
        scale: float,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        padding: Tensor | None,
    ) -> Tensor:
        """Attention of the lookahead rows, and their loss."""
        scores = per_head_scores(query, key, scale)
        self.losses[index] = kl_divergence(self._targets[index], scores)
        return super().attend(index, scale, query, key, value, padding)


@contextlib.contextmanager
def _checkpointed(model: Any, modules: LookaheadModules) -> Iterator[None]:
    """LoRA on the lookahead rows of layers that are recomputed in backward.

    The LoRA is added within the recomputed part, because backward runs after this block has ended.
    """
    layers = decoder_layers(model)
    for index, layer in enumerate(layers):
        layer.forward = _recomputed(layer, index, modules)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _recomputed(layer: Any, index: int, modules: LookaheadModules) -> Any:
    plain = layer.forward

    def with_lora(*args: Any, **kwargs: Any) -> Any:
        with lora_on_layer(layer, index, modules):
            return plain(*args, **kwargs)

    return lambda *args, **kwargs: checkpoint(with_lora, *args, use_reentrant=False, **kwargs)


def lookahead_loss(
    model: Any, modules: LookaheadModules, target: Target, *, checkpointing: bool = False
) -> Tensor:
    """Mean KL over layers and heads of the lookahead rows' prediction (paper eq. 5), a scalar.

    Args:
        model: the frozen model, our attention attached.
        modules: what is trained.
        target: the sample.
        checkpointing: spend a second forward of the lookahead rows in backward to save memory.
    """
    cache = _PrefixCache(target.cache, target.scores)
    prompt = target.cache.layers[0].stored_length
    rows = modules.config.num_lookahead
    decoder = model.get_decoder()
    with _checkpointed(model, modules) if checkpointing else lora_on_last_rows(model, modules):
        decoder(
            inputs_embeds=modules.embeddings.to(model.dtype)[None],
            position_ids=torch.arange(prompt, prompt + rows, device=model.device)[None],
            **{cache_argument(model): cache},
            use_cache=True,
        )
    return torch.stack([cache.losses[index] for index in sorted(cache.losses)]).mean()
