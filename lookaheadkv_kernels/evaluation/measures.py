"""Measures that need no labels: the share of what the answer attends to that a policy keeps.

The ground truth is the model's own greedy answer from the full cache, and its rows' attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..integrations.transformers.cache import EvictableCache, LayerRows
from ..integrations.transformers.compat import cache_argument
from ..integrations.transformers.devices import input_device
from ..training.step import ground_truth, kl_divergence


def group_mean(scores: Tensor, num_kv_heads: int) -> Tensor:
    """[Hq, N] -> [Hkv, N]: mean over the query heads that share a KV head."""
    return scores.view(num_kv_heads, -1, scores.shape[-1]).mean(dim=1)


def kept_mass(scores: Tensor, positions: Tensor) -> Tensor:
    """Share of the ground-truth attention that kept entries hold: [Hkv].

    ``scores`` [Hkv, N] are ground-truth importances, ``positions`` [Hkv, K] what was kept, -1 in
    empty slots.
    """
    taken = scores.gather(1, positions.clamp(min=0).to(torch.int64)).masked_fill(positions < 0, 0)
    return taken.sum(dim=1) / scores.sum(dim=1)


def recall(scores: Tensor, positions: Tensor) -> Tensor:
    """Share of the k best entries by ``scores`` [Hkv, N] among the k that each head kept: [Hkv].

    ``positions`` [Hkv, K] hold -1 in empty slots; heads may keep different numbers.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    shares = []
    for best, kept in zip(order, positions, strict=True):
        kept = kept[kept >= 0]
        shares.append(torch.isin(best[: len(kept)], kept).float().mean())
    return torch.stack(shares)


def mean_over_layers(values: Sequence[Tensor]) -> float:
    """Mean over layers and heads."""
    return float(torch.stack([value.mean() for value in values]).mean())


def agreement(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of leading tokens that are the same."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def perturbation(
    query: Tensor,  # [Hq, R, D], of the newest R entries
    key: Tensor,  # [Hkv, N + R, D]
    value: Tensor,  # [Hkv, N + R, D]
    positions: Tensor,  # [Hkv, K] of the N first, -1 in empty slots
    scale: float,
) -> Tensor:
    """Paper eq. 2: ||Attn(x, KV) - Attn(x, kept KV)|| / ||Attn(x, KV)|| of R rows, per KV head.

    Norms are over the rows, the heads of the group and the head's dimensions: [Hkv].
    """
    kv_heads, stored, _ = key.shape
    rows = query.shape[1]
    prompt = stored - rows
    grouped = query.float().view(kv_heads, -1, rows, query.shape[2])
    logits = grouped @ key.float()[:, None].transpose(-1, -2) * scale
    ahead = torch.ones(rows, rows, dtype=torch.bool, device=key.device).triu(1)
    logits[..., prompt:].masked_fill_(ahead, -torch.inf)
    # Empty slots point at one extra column.
    gone = torch.ones(kv_heads, prompt + 1, dtype=torch.bool, device=key.device)
    where = torch.where(positions < 0, prompt, positions).to(torch.int64)
    gone.scatter_(1, where, False)
    whole = logits.softmax(dim=-1) @ value.float()[:, None]
    logits[..., :prompt].masked_fill_(gone[:, None, None, :prompt], -torch.inf)
    left = logits.softmax(dim=-1) @ value.float()[:, None]
    change: Tensor = (whole - left).flatten(1).norm(dim=1) / whole.flatten(1).norm(dim=1)
    return change


def response_nll(
    model: Any, cache: EvictableCache, logits: Tensor, response: Sequence[int]
) -> float:
    """Mean negative log-likelihood of a response's tokens, teacher-forced.

    Args:
        model: with our attention attached.
        cache: of the prompt, cut or whole; it is not changed.
        logits: [vocabulary] of the prompt's last token.
        response: token ids.
    """
    rows = [logits]
    if len(response) > 1:
        rows += list(all_logits(model, response[:-1], cache.fork()))
    wanted = torch.tensor(list(response), device=logits.device)
    return float(torch.nn.functional.cross_entropy(torch.stack(rows).float(), wanted))


@torch.no_grad()
def all_logits(model: Any, ids: Sequence[int], cache: EvictableCache) -> Tensor:
    """Append ``ids`` to the cache; returns the logits after each, [len(ids), vocabulary]."""
    out = model(
        torch.tensor([list(ids)], device=input_device(model)),
        **{cache_argument(model): cache},
        use_cache=True,
    )
    logits: Tensor = out.logits[0]
    return logits


class _Layer(NamedTuple):
    """One layer's entries and the answer's rows."""

    key: Tensor  # [Hkv, N + R, D], prompt and answer
    value: Tensor  # [Hkv, N + R, D]
    query: Tensor  # [Hq, R, D] of the answer
    scale: float


class GroundTruth:
    """The answer from the full cache, and the prompt entries that it attended to.

    Args:
        model: a transformers model with our attention attached.
        prompt_ids: the prompt.
        max_response: longest answer, in tokens.

    Attributes:
        response_ids: the answer, its end token included.
    """

    @torch.no_grad()
    def __init__(self, model: Any, prompt_ids: Sequence[int], max_response: int) -> None:
        self._model = model
        self._layers: list[_Layer] = []

        def remember(rows: LayerRows) -> None:
            key, value = rows.layer.keys[0], rows.layer.values[0]
            self._layers.append(_Layer(key, value, rows.query[0].clone(), rows.scale))

        target = ground_truth(model, prompt_ids, None, max_response, observer=remember)
        self.response_ids = target.response_ids
        # Normalised importance of the prompt's entries, [Hkv, N] per layer.
        self._scores = [
            group_mean(scores, len(layer.key))
            for scores, layer in zip(target.scores, self._layers, strict=True)
        ]

    @torch.no_grad()
    def measure(self, cache: EvictableCache, answer_ids: Sequence[int]) -> dict[str, float]:
        """All measures of an evicted cache that has not been decoded from.

        Args:
            cache: as a prefill left it, with the policy's choices recorded.
            answer_ids: the answer from this cache.
        """
        found: dict[str, list[Tensor]] = {"recall": [], "mass": [], "perturbation": []}
        divergence = []
        for index, (truth, layer) in enumerate(zip(self._scores, self._layers, strict=True)):
            positions = cache.layers[index].positions()[0]
            found["recall"].append(recall(truth, positions))
            found["mass"].append(kept_mass(truth, positions))
            found["perturbation"].append(
                perturbation(layer.query, layer.key, layer.value, positions, layer.scale)
            )
            scores = cache.choices[index].scores if cache.choices else None
            if scores is not None:
                # Entries that always stay may have no score: the rest is compared.
                scored = truth[:, : scores.shape[2]]
                divergence.append(kl_divergence(scored, scores[0].float()))
        measures = {name: mean_over_layers(values) for name, values in found.items()}
        if divergence:
            measures["kl"] = float(torch.stack(divergence).mean())
        assert cache.logits is not None
        measures["nll"] = response_nll(self._model, cache, cache.logits[0], self.response_ids)
        measures["agreement"] = agreement(self.response_ids, answer_ids)
        measures["exact"] = float(list(self.response_ids) == list(answer_ids))
        return measures
