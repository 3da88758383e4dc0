"""Rotary embeddings that depend on the length of the text see the prompt alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.eviction_model import attached, modules_of, text, tiny
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PhimoeConfig,
    PhimoeForCausalLM,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lookaheadkv_kernels.integrations.transformers import Eviction, LookaheadKV
from lookaheadkv_kernels.integrations.transformers.rotary import LengthRopes
from lookaheadkv_kernels.integrations.transformers.shared_prefill import SharedPrefill
from lookaheadkv_kernels.policies import LAQ, Policy, SnapKV

pytestmark = pytest.mark.usefixtures("one_thread")
SWITCH = 64  # tokens at which the angles of a text change
ROWS = 32
# Below the switch, just below it, so that learned rows cross it, at it, and past it.
LENGTHS = (24, 50, 63, 64, 65, 90)
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]}
# What each type needs besides a base; a type that a new release brings fails until it is listed.
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": SWITCH},
    "longrope": {"factor": 2.0, "original_max_position_embeddings": SWITCH, **FACTORS},
    "llama3": {
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": SWITCH,
    },
    "proportional": {"partial_rotary_factor": 0.5},
}
BY_LENGTH = {"dynamic", "longrope"}


def rope_model(rope: str, kind: str = "llama") -> Any:
    own = {"rope_type": rope, "rope_theta": 1000.0, **ROPES[rope]}
    longest = 4 * SWITCH if "original_max_position_embeddings" in own else SWITCH
    return tiny(kind, num_hidden_layers=2, max_position_embeddings=longest, rope_parameters=own)


def rope_state(model: Any) -> list[Any]:
    """Every number in which a rotary module remembers what it was given."""
    rotary = model.model.rotary_emb
    numbers = [getattr(rotary, name, None) for name in ("max_seq_len_cached", "attention_scaling")]
    return [rotary.inv_freq.tolist(), *(None if n is None else float(n) for n in numbers)]


def decoded(model: Any, cache: Any, name: str, ids: Tensor, first: Tensor) -> Tensor:
    """Logits of 20 forced tokens, [20, vocabulary]."""
    rows = [first[0]]
    for step, token in enumerate(text(19, 7)[0].tolist()):
        with torch.no_grad():
            out = model(
                torch.tensor([[token]]),
                position_ids=torch.tensor([[ids.shape[1] + step]]),
                **{name: cache},
                use_cache=True,
            )
        rows.append(out.logits[0, -1])
    return torch.stack(rows)


def test_every_rope_type_is_tried() -> None:
    assert set(ROPES) == {"default", *ROPE_INIT_FUNCTIONS}
    for rope in ROPES:
        assert bool(LengthRopes(rope_model(rope).model).ropes) == (rope in BY_LENGTH)


def attached_long(model: Any, **options: Any) -> LookaheadKV:
    """With enough rows to cross the switch."""
    return LookaheadKV(model, modules_of(model, ROWS), **options)


WAYS: dict[str, Callable[[Any], Eviction]] = {
    "appended": lambda model: attached_long(model),
    "extend": lambda model: attached_long(model, mode="extend"),
    "appended in chunks": lambda model: attached_long(model, chunk=20),
    "extend in chunks": lambda model: attached_long(model, mode="extend", chunk=20),
    "snapkv in chunks": lambda model: Eviction(model, SnapKV(window=8), chunk=20),
    "draft": lambda model: Eviction(model, LAQ(window=8, draft_tokens=30), chunk=20),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rope", ROPES)
def test_prompt_and_decoding_are_the_plain_models(rope: str, way: str) -> None:
    model = rope_model(rope)
    lengths = LENGTHS if rope in BY_LENGTH else LENGTHS[1:2]
    for length in lengths:
        ids, plain, ours = text(length), copy.deepcopy(model), copy.deepcopy(model)
        lkv = WAYS[way](ours)
        name = lkv.runner._cache_argument
        with torch.no_grad():
            out = plain(ids, use_cache=True, logits_to_keep=1)
        cache = lkv.prefill(ids, budget=200)  # nothing is cut
        torch.testing.assert_close(cache.logits, out.logits[:, -1], rtol=0, atol=1e-5)
        assert rope_state(ours) == rope_state(plain)
        expected = decoded(plain, out[name], name, ids, out.logits[:, -1])
        torch.testing.assert_close(
            decoded(ours, cache, name, ids, cache.logits), expected, rtol=0, atol=2e-5
        )
        assert rope_state(ours) == rope_state(plain)


@pytest.mark.parametrize("rope", sorted(BY_LENGTH))
def test_modes_and_chunks_keep_the_same_entries(rope: str) -> None:
    for length in LENGTHS:
        kept = []
        for way in [way for way in WAYS if "appended" in way or "extend" in way]:
            cache = WAYS[way](rope_model(rope)).prefill(text(length), budget=12)
            kept.append([layer.kept_positions.tolist() for layer in cache.layers])
        assert all(other == kept[0] for other in kept[1:]), length


@pytest.mark.parametrize("rope", sorted(BY_LENGTH))
def test_batches_turns_and_earlier_texts_are_as_in_the_plain_model(rope: str) -> None:
    plain, ours = rope_model(rope), rope_model(rope)
    lkv = attached_long(ours, chunk=20)
    name = lkv.runner._cache_argument
    # A longer text first, which `dynamic` remembers; then a padded batch that crosses the switch.
    padded = torch.cat([torch.zeros(1, 20, dtype=torch.long), text(30, 3)], dim=1)
    batch = torch.cat([text(50, 2), padded])
    mask = (batch != 0).long()
    with torch.no_grad():
        for ids, more in (
            (text(80), {}),
            (batch, {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}),
        ):
            out = plain(ids, use_cache=True, logits_to_keep=1, **more)
            cache = lkv.prefill(ids, more.get("attention_mask"), budget=200)
            torch.testing.assert_close(cache.logits, out.logits[:, -1], rtol=0, atol=1e-5)
            assert rope_state(ours) == rope_state(plain)
        # A second turn.
        first, second = text(40), text(40, 5)
        before = plain(first, use_cache=True)[name]
        out = plain(second, use_cache=True, logits_to_keep=1, **{name: before})
        cache = lkv.prefill(first, budget=200)
        lkv.prefill(second, budget=200, cache=cache)
        torch.testing.assert_close(cache.logits, out.logits[:, -1], rtol=0, atol=1e-5)
        assert rope_state(ours) == rope_state(plain)


@pytest.mark.parametrize("rope", sorted(BY_LENGTH))
def test_generate_is_the_plain_models_over_the_switch(rope: str) -> None:
    options = {"max_new_tokens": 30, "do_sample": False}
    for length in (50, 90):
        expected = rope_model(rope).generate(text(length), **options)
        out = attached_long(rope_model(rope)).generate(text(length), budget=200, **options)
        assert out.equal(expected)


@pytest.mark.parametrize("rope", sorted(BY_LENGTH))
def test_one_reading_for_many_cuts_starts_every_cut_from_the_prompt(rope: str) -> None:
    model = rope_model(rope)
    ids, cells = text(50), [(SnapKV(window=8), 40), (LAQ(window=8, draft_tokens=30), 40)]
    lkv = attached_long(model)
    own: list[tuple[Policy, int]] = [*cells, (lkv.policy, 40)]
    shared = SharedPrefill(model, ids, own)
    after = rope_state(model)
    for policy, budget in own:
        with torch.no_grad():
            model(text(90), use_cache=False)  # an answer to another cut grew the state
        kept = [layer.kept_positions.tolist() for layer in shared.cut(policy, budget).layers]
        assert rope_state(model) == after
        alone = Eviction(rope_model(rope), policy).prefill(ids, budget=budget)
        assert kept == [layer.kept_positions.tolist() for layer in alone.layers]


@pytest.mark.parametrize("rope", sorted(BY_LENGTH))
def test_an_error_leaves_the_state_and_the_forward_as_they_were(rope: str) -> None:
    for way, make in WAYS.items():
        model = rope_model(rope)
        lkv = make(model)
        before, names = rope_state(model), set(model.model.rotary_emb.__dict__)
        handle = model.model.layers[1].register_forward_pre_hook(lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            lkv.prefill(text(90), budget=40)
        handle.remove()
        assert rope_state(model) == before, way
        assert set(model.model.rotary_emb.__dict__) == names


def test_ropes_of_single_layer_types() -> None:
    """One module with frequencies of its own for every type of layer, as Gemma 3 has it."""

    def make() -> Any:
        torch.manual_seed(0)
        kinds = {
            kind: {"rope_type": "dynamic", "rope_theta": theta, "factor": 2.0}
            for kind, theta in (("full_attention", 1000.0), ("sliding_attention", 100.0))
        }
        config = Gemma3TextConfig(
            vocab_size=97,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=SWITCH,
            layer_types=["full_attention"] * 2,
            rope_parameters=kinds,
            initializer_range=0.2,
        )
        return Gemma3ForCausalLM(config).eval()

    for length in LENGTHS:
        plain, ours = make(), make()
        with torch.no_grad():
            expected = plain(text(length), logits_to_keep=1).logits[:, -1]
        for options in ({}, {"mode": "extend"}, {"chunk": 20}):
            cache = attached_long(copy.deepcopy(ours), **options).prefill(text(length), budget=200)
            torch.testing.assert_close(cache.logits, expected, rtol=0, atol=1e-5)


class StatelessRotary(nn.Module):
    """A rotary embedding that looks at the length in its own forward and knows no types."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.inner(x, position_ids)
        factor = 1.0 if int(position_ids.max()) < SWITCH else 1.5
        return cos * factor, sin * factor


def phimoe() -> Any:
    torch.manual_seed(0)
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1000.0,
        "original_max_position_embeddings": SWITCH,
        "short_mscale": 1.0,
        "long_mscale": 1.7,
        "factor": 2.0,
        **FACTORS,
    }
    config = PhimoeConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=4 * SWITCH,
        rope_parameters=rope,
        sliding_window=None,
        initializer_range=0.12,
    )
    return PhimoeForCausalLM(config).eval()


def stateless() -> Any:
    model = tiny(num_hidden_layers=2)
    model.model.rotary_emb = StatelessRotary(model.model.rotary_emb)
    return model


@pytest.mark.parametrize("make", [phimoe, stateless])
def test_a_module_that_cannot_be_told_gets_the_rows_in_a_pass_of_their_own(make: Any) -> None:
    lkv = Eviction(make(), SnapKV(window=8), chunk=20)
    assert not lkv.runner.takes_rows_along
    for length in LENGTHS:
        with torch.no_grad():
            expected = make()(text(length), logits_to_keep=1).logits[:, -1]
        cache = lkv.prefill(text(length), budget=200)
        torch.testing.assert_close(cache.logits, expected, rtol=0, atol=1e-5)
        if make is stateless:
            for options in ({}, {"chunk": 20}):
                cache = attached_long(make(), **options).prefill(text(length), budget=200)
                torch.testing.assert_close(cache.logits, expected, rtol=0, atol=1e-5)


def test_appended_and_extend_are_what_users_get_without_such_ropes() -> None:
    assert attached(tiny()).runner.takes_rows_along
