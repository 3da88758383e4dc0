"""One training sample against plain PyTorch: targets, loss and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from support.tiny_model import random_modules, tiny_llama

from lookaheadkv_kernels import python_ref
from lookaheadkv_kernels.integrations.transformers.attention import attach
from lookaheadkv_kernels.integrations.transformers.lora import lora_on_last_rows
from lookaheadkv_kernels.lookahead import LookaheadModules
from lookaheadkv_kernels.training.step import (
    ground_truth,
    kl_divergence,
    lookahead_loss,
    normalised,
    per_head_scores,
)

PROMPT = [7 + (i * 37) % 80 for i in range(45)]
RESPONSE = [9 + (i * 11) % 80 for i in range(7)]


@pytest.fixture
def model() -> Any:
    model = tiny_llama().requires_grad_(False)
    attach(model)
    return model


def eager_attentions(model: Any, **inputs: Any) -> list[Tensor]:
    """Every layer's probabilities [Hq, S, S] from the model's own eager attention."""
    eager = tiny_llama().requires_grad_(False)
    eager.set_attn_implementation("eager")
    modules = inputs.pop("modules", None)
    if modules is None:
        out = eager(**inputs, output_attentions=True)
    else:
        with lora_on_last_rows(eager, modules):
            out = eager(**inputs, output_attentions=True)
    return [layer[0] for layer in out.attentions]


def plain_targets(model: Any) -> list[Tensor]:
    both = torch.tensor([PROMPT + RESPONSE])
    n = len(PROMPT)
    scores = [p[:, n:, :n].mean(dim=1) for p in eager_attentions(model, input_ids=both)]
    return [score / score.sum(-1, keepdim=True) for score in scores]


def plain_loss(model: Any, modules: LookaheadModules, targets: list[Tensor]) -> Tensor:
    """Eq. 5 from one eager forward over prompt and lookahead rows."""
    n = len(PROMPT)
    prompt = model.get_input_embeddings()(torch.tensor([PROMPT]))
    embeds = torch.cat([prompt, modules.embeddings[None]], dim=1)
    losses = []
    for target, p in zip(
        targets, eager_attentions(model, inputs_embeds=embeds, modules=modules), strict=True
    ):
        score = p[:, n:, :n].mean(dim=1)
        score = score / score.sum(-1, keepdim=True)
        losses.append((target * (target.log() - score.log())).sum(-1).mean())
    return torch.stack(losses).mean()


def test_per_head_scores_are_the_oracles_without_the_group_mean() -> None:
    query, key = torch.randn(1, 6, 5, 8), torch.randn(1, 2, 25, 8)
    expected = python_ref.attention_probabilities(query, key)[0, :, :, :20].mean(dim=1)
    torch.testing.assert_close(per_head_scores(query, key, 8**-0.5), expected)


def test_targets_are_the_responses_mean_attention(model: Any) -> None:
    target = ground_truth(model, PROMPT, RESPONSE, 512)
    assert target.response_ids == RESPONSE
    for ours, plain in zip(target.scores, plain_targets(model), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def test_the_model_answers_where_the_data_does_not(model: Any) -> None:
    target = ground_truth(model, PROMPT, None, 6)
    ids = model.generate(torch.tensor([PROMPT]), max_new_tokens=6, do_sample=False)
    assert target.response_ids == ids[0, len(PROMPT) :].tolist()
    assert target.cache.layers[0].stored_length == len(PROMPT)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_a_plain_forward(model: Any, checkpointing: bool) -> None:
    modules = random_modules(model, num_lookahead=4, lora_rank=2)
    target = ground_truth(model, PROMPT, RESPONSE, 512)
    loss = lookahead_loss(model, modules, target, checkpointing=checkpointing)
    expected_loss = plain_loss(model, modules, plain_targets(model))
    torch.testing.assert_close(loss, expected_loss, rtol=1e-4, atol=1e-6)
    loss.backward()
    ours = {name: parameter.grad for name, parameter in modules.named_parameters()}
    modules.zero_grad()
    expected_loss.backward()
    for name, parameter in modules.named_parameters():
        assert ours[name] is not None and parameter.grad is not None
        assert parameter.grad.abs().sum() > 0, name  # the last layer's q and k too
        torch.testing.assert_close(ours[name], parameter.grad, rtol=2e-3, atol=1e-6, msg=name)


def test_a_sample_leaves_the_model_as_it_was(model: Any) -> None:
    ids = torch.tensor([PROMPT])
    before = model(ids).logits
    modules = random_modules(model, num_lookahead=4)
    lookahead_loss(
        model, modules, ground_truth(model, PROMPT, RESPONSE, 512), checkpointing=True
    ).backward()
    assert torch.equal(model(ids).logits, before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any("forward" in vars(layer) for layer in model.model.layers)


def test_kl_is_zero_only_for_equal_scores() -> None:
    scores = torch.rand(3, 20)
    assert kl_divergence(scores, 5 * scores) == pytest.approx(0, abs=1e-6)
    assert kl_divergence(scores, torch.rand(3, 20)) > 0.01
    empty = torch.zeros(3, 20)
    assert torch.isfinite(kl_divergence(scores, empty)) and torch.isfinite(normalised(empty)).all()
