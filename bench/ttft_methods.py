"""What `bench/ttft.py` times: models, and every way to a first token, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from bench.peers.eager import eager_score_and_evict
from lookaheadkv_kernels.integrations.transformers import EvictableCache, Eviction
from lookaheadkv_kernels.integrations.transformers.compat import cache_argument
from lookaheadkv_kernels.integrations.transformers.loading import PACKAGED_MODELS, load
from lookaheadkv_kernels.lookahead import LookaheadConfig, LookaheadModules, ModelShape, catalog
from lookaheadkv_kernels.policies import LAQ, FullCache, LookaheadPolicy, SnapKV, SpecKV
from lookaheadkv_kernels.policies.base import Policy

LOOKAHEAD_ROWS = 32
DRAFT_TOKENS = 32
# The paper's draft model for LLaMA-3.1-8B. Other models get one with an eighth of their layers.
DRAFTS = {"llama-3.1-8b": "llama-3.2-1b"}
DRAFT_SHARE = 8
# Methods whose overhead is a small difference of large times take part in every round.
QUICK = ("forward", "full cache", "lookaheadkv", "snapkv")

Prefill = Callable[[Tensor], Any]  # of token ids [1, N]


def random_model(name: str, dtype: torch.dtype, device: str, layer_share: int = 1) -> Any:
    """A known model's shape, or one ``layer_share``-th of its layers, with random weights."""
    facts = catalog.model_facts(name)
    sizes = {key: value for key, value in vars(facts.shape).items() if key != "model_type"}
    sizes["num_hidden_layers"] = max(1, sizes["num_hidden_layers"] // layer_share)
    config = AutoConfig.for_model(
        facts.shape.model_type,
        **sizes,
        vocab_size=facts.vocab_size,
        tie_word_embeddings=facts.tie_word_embeddings,
        max_position_embeddings=131_072,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@dataclass(frozen=True)
class Models:
    """The model, and one that drafts for it."""

    name: str
    target: Any
    draft: Any

    @classmethod
    def make(cls, name: str, dtype: torch.dtype, device: str) -> Models:
        """The packaged model as it is, a known one with random weights: its time is the same.

        Neither ends an answer early: every draft has as many tokens as the paper's.
        """
        if name in PACKAGED_MODELS:
            target = load(name, dtype=dtype, device=device)[0]
        else:
            target = random_model(name, dtype, device)
        if name in DRAFTS:
            draft = random_model(DRAFTS[name], dtype, device)
        else:
            draft = random_model(name.removesuffix("-instruct"), dtype, device, DRAFT_SHARE)
        for model in (target, draft):
            model.generation_config.eos_token_id = None
        return cls(name, target, draft)

    def prompt(self, num_tokens: int) -> Tensor:
        """Random token ids [1, N]."""
        known = self.target.get_input_embeddings().num_embeddings
        return torch.randint(3, known, (1, num_tokens), device=self.target.device)


def untrained_modules(model: Any) -> LookaheadModules:
    """Modules of the model's sizes; what they learned does not change the time."""
    modules = LookaheadModules(LookaheadConfig(model=ModelShape.of(model.config)))
    modules.reset_parameters(0.02, torch.Generator().manual_seed(0))
    return modules.requires_grad_(False).to(model.device, model.dtype)


def prefill_by(model: Any, policy: Policy, budget: int) -> Callable[[Tensor], EvictableCache]:
    """A prompt's cache as a policy leaves it."""
    eviction = Eviction(model, policy)
    return lambda ids: eviction.prefill(ids, budget=budget)


def plain_prefill(model: Any) -> Prefill:
    """The model's own forward; returns transformers' cache."""
    argument = cache_argument(model)
    return lambda ids: model(ids, use_cache=True, logits_to_keep=1)[argument]


def eager_prefill(model: Any, budget: int) -> Prefill:
    """The same with the paper-style eager eviction behind it, by queries of the right shape."""
    forward, shape = plain_prefill(model), ModelShape.of(model.config)
    size = (1, shape.num_attention_heads, LOOKAHEAD_ROWS, shape.head_dim)

    def run(ids: Tensor) -> Any:
        query = torch.randn(size, dtype=model.dtype, device=model.device)
        return [
            eager_score_and_evict(query, layer.keys, layer.values, budget)[:2]
            for layer in forward(ids).layers
        ]

    return run


def methods(models: Models, budget: int) -> dict[str, Prefill]:
    """Every method by its name in the tables. `full cache` is the forward through our cache with
    nothing evicted: beyond it a method adds the eviction alone, and no other attention kernel."""
    model, modules = models.target, untrained_modules(models.target)
    policies: dict[str, Policy] = {
        "full cache": FullCache(),
        "lookaheadkv": LookaheadPolicy(modules),
        "lookaheadkv extend": LookaheadPolicy(modules, mode="extend"),
        "snapkv": SnapKV(),
        "laq": LAQ(draft_tokens=DRAFT_TOKENS),
        "speckv": SpecKV(models.draft, draft_tokens=DRAFT_TOKENS),
    }
    return {
        "forward": plain_prefill(model),
        **{name: prefill_by(model, policy, budget) for name, policy in policies.items()},
        "eager": eager_prefill(model, budget),
    }


def decoders(models: Models, budget: int, ids: Tensor) -> dict[str, Callable[[], None]]:
    """One decoding step after a prompt, by cache: transformers', ours uncut, ours evicted."""
    model = models.target
    argument = cache_argument(model)
    caches = {
        "forward": plain_prefill(model)(ids),
        "full cache": prefill_by(model, FullCache(), budget)(ids),
        "lookaheadkv": prefill_by(model, LookaheadPolicy(untrained_modules(model)), budget)(ids),
    }
    token = ids[:, -1:]

    def step(cache: Any) -> Callable[[], None]:
        position = torch.tensor([[ids.shape[1]]], device=ids.device)

        def run() -> None:
            model(token, **{argument: cache}, use_cache=True, position_ids=position)
            position.add_(1)

        return run

    return {name: step(cache) for name, cache in caches.items()}
