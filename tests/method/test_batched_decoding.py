"""One prefill for many cells, and their answers decoded as a batch: the same as one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from support.tiny_model import random_modules, tiny_llama

from lookaheadkv_kernels.integrations.transformers import Eviction
from lookaheadkv_kernels.integrations.transformers.batched_decoding import decode_together
from lookaheadkv_kernels.integrations.transformers.greedy import greedy_answer
from lookaheadkv_kernels.integrations.transformers.shared_prefill import SharedPrefill
from lookaheadkv_kernels.policies import POLICY_NAMES, Policy, make_policy

LENGTH, MOST = 120, 12
BUDGETS = (40, 0.4, 1.0)


def make(name: str, model: Any) -> Policy:
    options: dict[str, Any] = {}
    if name == "lookahead":
        options["modules"] = random_modules(model, num_lookahead=5, lora_rank=2)
    if name == "speckv":
        options |= {"draft_model": tiny_llama(seed=9), "draft_tokens": 7}
    if name == "laq":
        options["draft_tokens"] = 6
    return make_policy(name, **options)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama(seed=3)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(6, 96, (1, LENGTH), generator=torch.Generator().manual_seed(5))


def one_by_one(model: Any, policy: Policy, ids: Any, budget: Any, chunk: int | None) -> Any:
    """A prefill of its own; what it kept in every layer, and the answer from it."""
    eviction = Eviction(model, policy, chunk=chunk)
    eviction.runner.record = True
    cache = eviction.prefill(ids, budget=budget)
    assert cache.logits is not None
    return cache, greedy_answer(model, cache, cache.logits[0], MOST)


@pytest.mark.parametrize("chunk", [None, 47])
def test_all_cells_of_a_prompt_answer_as_each_alone(
    model: Any, ids: torch.Tensor, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = {name: make(name, model) for name in POLICY_NAMES}
    cells = [(policy, budget) for policy in policies.values() for budget in BUDGETS]
    expected = [one_by_one(model, policy, ids, budget, chunk) for policy, budget in cells]
    answers = [answer for _, answer in expected]
    # First all go to the longest answer, then rows end one after the other.
    ends = sorted({answer[3] for answer in answers} - {answers[0][0]})[:2]
    for end in (None, ends):
        monkeypatch.setattr(model.generation_config, "eos_token_id", end)
        if end is not None:
            expected = [one_by_one(model, policy, ids, budget, chunk) for policy, budget in cells]
            answers = [answer for _, answer in expected]
            assert len({len(answer) for answer in answers}) > 1
        shared = SharedPrefill(model, ids, cells, chunk=chunk, record=True)
        caches = [shared.cut(policy, budget) for policy, budget in cells]
        for (cache, _), other in zip(expected, caches, strict=True):
            for one, two in zip(cache.layers, other.layers, strict=True):
                assert torch.equal(one.positions(), two.positions())
                assert type(one) is type(two)
            for alone, choice in zip(cache.choices, other.choices, strict=True):
                assert (alone.scores is None) == (choice.scores is None)
                if alone.scores is not None and choice.scores is not None:
                    torch.testing.assert_close(choice.scores, alone.scores, rtol=1e-4, atol=1e-7)
        logits = torch.cat([cache.logits for cache in caches if cache.logits is not None])
        assert decode_together(model, caches, logits, MOST) == answers
        # The caches are as they were: a second batch, in another order, says the same.
        turned = decode_together(model, caches[::-1], logits.flip(0), MOST)
        assert turned[::-1] == answers


def test_texts_of_different_lengths_decode_together(model: Any, ids: torch.Tensor) -> None:
    eviction = Eviction(model, make("adakv", model))
    caches = [eviction.prefill(ids[:, start:], budget=50) for start in (0, 20, 50, 100)]
    expected = [greedy_answer(model, c, c.logits[0], MOST) for c in caches if c.logits is not None]
    logits = torch.cat([cache.logits for cache in caches if cache.logits is not None])
    assert decode_together(model, caches, logits, MOST) == expected
    assert decode_together(model, caches, logits, 1) == [answer[:1] for answer in expected]
