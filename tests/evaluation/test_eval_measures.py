"""Measures that need no labels, against slow and hand-made values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from support.tiny_model import tiny_llama

from lookaheadkv_kernels.evaluation.measures import (
    GroundTruth,
    agreement,
    kept_mass,
    perturbation,
    recall,
    response_nll,
)
from lookaheadkv_kernels.integrations.transformers import Eviction
from lookaheadkv_kernels.integrations.transformers.greedy import greedy_answer
from lookaheadkv_kernels.policies import AdaKV, FullCache, Oracle, RandomPolicy, SnapKV

PROMPT = list(range(6, 86))


def test_recall_and_mass_by_hand() -> None:
    scores = torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4]])
    positions = torch.tensor([[0, 1], [3, -1]], dtype=torch.int32)
    torch.testing.assert_close(recall(scores, positions), torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(kept_mass(scores, positions), torch.tensor([0.5, 0.4]))


def test_agreement_by_hand() -> None:
    assert agreement([1, 2, 3], [1, 2, 4, 5]) == 2
    assert agreement([1, 2], [1, 2, 3]) == 2
    assert agreement([], [1]) == 0


def slow_attention(q: Tensor, k: Tensor, v: Tensor, seen: list[int]) -> Tensor:
    weights = (k[seen] @ q / 3).softmax(dim=0)
    return weights @ v[seen]


def test_perturbation_is_that_of_attention_row_by_row() -> None:
    prompt, rows, group = 9, 3, 2
    query = torch.randn(2 * group, rows, 5)
    key, value = torch.randn(2, 2, prompt + rows, 5)
    positions = torch.tensor([[0, 4, 8], [2, 3, -1]], dtype=torch.int32)
    found = perturbation(query, key, value, positions, 1 / 3)
    for head in range(2):
        kept = [p for p in positions[head].tolist() if p >= 0]
        before, change = [], []
        for q in query[head * group : (head + 1) * group].reshape(group, rows, 5):
            for row in range(rows):
                own = list(range(prompt, prompt + row + 1))
                whole = slow_attention(q[row], key[head], value[head], [*range(prompt), *own])
                left = slow_attention(q[row], key[head], value[head], [*kept, *own])
                before.append(whole)
                change.append(whole - left)
        expected = torch.stack(change).norm() / torch.stack(before).norm()
        torch.testing.assert_close(found[head], expected)


def measured(policy: object, budget: float) -> dict[str, float]:
    model = tiny_llama()
    eviction = Eviction(model, policy)  # type: ignore[arg-type]
    eviction.runner.record = True
    truth = GroundTruth(model, PROMPT, 12)
    cache = eviction.prefill(torch.tensor([PROMPT]), budget=budget)
    assert cache.logits is not None
    answer = greedy_answer(model, cache, cache.logits[0], 12)
    return truth.measure(cache, answer)


def test_the_full_cache_changes_nothing() -> None:
    found = measured(FullCache(), 1.0)
    assert found["recall"] == 1 and found["exact"] == 1 and found["agreement"] >= 1
    assert found["mass"] == pytest.approx(1)
    assert found["perturbation"] == pytest.approx(0, abs=1e-6)


def test_the_oracle_is_perfect_by_its_own_measure() -> None:
    found = measured(Oracle(max_tokens=12), 20)
    assert found["kl"] == pytest.approx(0, abs=1e-5)
    assert found["recall"] == pytest.approx(1)
    others = [measured(SnapKV(window=8), 20), measured(RandomPolicy(), 20)]
    assert all(found["mass"] > other["mass"] for other in others)
    assert all(other["kl"] > 0.01 and other["recall"] < 1 for other in others)


def test_heads_that_keep_different_numbers_are_measured() -> None:
    found = measured(AdaKV(window=8), 20)
    assert 0 < found["recall"] < 1 and 0 < found["mass"] < 1 and found["perturbation"] > 0


def test_likelihood_is_that_of_one_plain_forward() -> None:
    plain = tiny_llama()
    response = [7, 30, 41, 2]
    with torch.no_grad():
        logits = plain(torch.tensor([PROMPT + response])).logits[0, len(PROMPT) - 1 : -1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(response))
    model = tiny_llama()
    cache = Eviction(model, FullCache()).prefill(torch.tensor([PROMPT]), budget=1.0)
    assert cache.logits is not None
    for count in (4, 1):
        found = response_nll(model, cache, cache.logits[0], response[:count])
        if count == 4:
            assert found == pytest.approx(float(expected), rel=1e-4)
    assert cache.get_seq_length() == len(PROMPT)  # it was not decoded from
