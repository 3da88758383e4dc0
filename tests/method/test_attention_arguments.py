"""Every argument of the attention interface is honoured or refused by name, in every path."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.eviction_model import attached, modules_of, text, tiny
from support.families import family
from torch import nn
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.llama import modeling_llama

from lookaheadkv_kernels.integrations.transformers import EvictableCache, Eviction, LookaheadKV
from lookaheadkv_kernels.integrations.transformers.arguments import (
    HARMLESS,
    attention_scale,
    check_argument,
)
from lookaheadkv_kernels.integrations.transformers.attention import register
from lookaheadkv_kernels.integrations.transformers.batched_decoding import decode_together
from lookaheadkv_kernels.integrations.transformers.compat import cache_argument
from lookaheadkv_kernels.integrations.transformers.greedy import greedy_answer
from lookaheadkv_kernels.integrations.transformers.shared_prefill import SharedPrefill
from lookaheadkv_kernels.policies import AdaKV, FullCache, SnapKV

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = text(30)
# (argument, a value that asks for something, what the refusal says).
REFUSED: list[tuple[str, Any, str]] = [
    ("dropout", 0.1, r"dropout=0.1.*call model\.eval"),
    ("is_causal", False, "is_causal=False.*only causal"),
    ("softcap", 30.0, "softcap=30.0"),
    ("sliding_window", 16, "sliding_window=16"),
    ("s_aux", torch.zeros(6), r"s_aux=a tensor \[6\]"),
    ("sinks", torch.zeros(6), "sinks"),
    ("position_bias", torch.zeros(1, 6, 1, 1), "position_bias"),
    ("head_mask", torch.ones(6), "head_mask"),
    ("layer_head_mask", torch.ones(6), "layer_head_mask"),
    ("indices", torch.zeros(1, dtype=torch.long), "indices"),
    ("block_indices", torch.zeros(1, dtype=torch.long), "block_indices"),
    ("cu_seq_lens_q", torch.tensor([0, 3]), "cu_seq_lens_q"),
    ("max_length_k", 3, "max_length_k=3"),
    ("output_attentions", True, "output_attentions=True.*no attention weights"),
    ("something_new", "on", "something_new='on'"),
    ("something_new", nn.Identity(), "something_new=Identity"),
]
NOTHING: list[tuple[str, Any]] = [
    *((name, None) for name, _, _ in REFUSED),
    ("dropout", 0),
    ("dropout", 0.0),
    ("is_causal", True),
    ("output_attentions", False),
    ("something_new", False),
    *((name, torch.ones(2)) for name in sorted(HARMLESS)),
]


@pytest.fixture
def extra(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Llama's attention passes besides its own arguments, until the test ends."""
    passed: dict[str, Any] = {}
    own = modeling_llama.LlamaAttention.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        interface = modeling_llama.ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, modeling_llama.eager_attention_forward
        )

        class Interfaces:
            @staticmethod
            def get_interface(*_: Any) -> Any:
                return lambda *a, **k: interface(*a, **(k | passed))

        with monkeypatch.context() as patch:
            patch.setattr(modeling_llama, "ALL_ATTENTION_FUNCTIONS", Interfaces)
            return own(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", forward)
    return passed


def paths(extra: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """Every way in which a layer attends to an evictable cache."""
    model = tiny()
    lkv, ragged = attached(model), Eviction(model, AdaKV(window=8))
    chunked = attached(model, chunk=8)
    cache, cut = lkv.prefill(IDS, budget=8), ragged.prefill(IDS, budget=12)
    token = {"input_ids": IDS[:, :1], "position_ids": torch.tensor([[30]])}
    name = cache_argument(model)

    def cut_of_a_good_reading() -> object:
        asked = dict(extra)
        extra.clear()
        shared = SharedPrefill(model, IDS, [(lkv.policy, 8)])
        extra.update(asked)
        return shared.cut(lkv.policy, 8)

    return {
        "prompt": lambda: lkv.prefill(IDS, budget=8),
        "chunk": lambda: chunked.prefill(IDS, budget=8),
        "generate": lambda: lkv.generate(IDS, budget=8, max_new_tokens=2),
        "decoding": lambda: model(**token, **{name: cache.fork()}),
        "ragged": lambda: model(**token, **{name: cut.fork()}),
        "batched": lambda: decode_together(model, [cache, cache], torch.randn(2, 97), 3),
        "shared, read": lambda: SharedPrefill(model, IDS, [(lkv.policy, 8)]),
        "shared, cut": cut_of_a_good_reading,
    }


def test_every_path_refuses_by_name(extra: dict[str, Any]) -> None:
    for path, call in paths(extra).items():
        extra.clear()
        call()
        for argument, value, words in REFUSED:
            extra.clear()
            extra[argument] = value
            with pytest.raises(ValueError, match=f"LlamaAttention attends with {words}"):
                call()
                pytest.fail(f"{path}: {argument}")


def test_what_asks_for_nothing_passes(extra: dict[str, Any]) -> None:
    lkv = attached(tiny())
    expected = lkv.prefill(IDS, budget=8).logits
    for argument, value in NOTHING:
        extra.clear()
        extra[argument] = value
        assert lkv.prefill(IDS, budget=8).logits.equal(expected), argument


def results(model: Any) -> dict[str, Any]:
    """What every path makes of the same prompt."""
    lkv, ragged = attached(model), Eviction(model, AdaKV(window=8))
    cache, cut = lkv.prefill(IDS, budget=8), ragged.prefill(IDS, budget=12)
    name, shared = cache_argument(model), SharedPrefill(model, IDS, [(lkv.policy, 8)])
    token = {"input_ids": IDS[:, :1], "position_ids": torch.tensor([[30]])}
    with torch.no_grad():
        return {
            "plain": model(IDS).logits,
            "prompt": cache.logits,
            "decoding": model(**token, **{name: cache.fork()}).logits,
            "ragged": model(**token, **{name: cut.fork()}).logits,
            "batched": decode_together(model, [cache, cache], cache.logits.expand(2, -1), 6),
            "kept": [layer.kept_positions.tolist() for layer in cache.layers],
            "shared": [layer.kept_positions.tolist() for layer in shared.cut(lkv.policy, 8).layers],
        }


def test_every_path_honours_the_scale(extra: dict[str, Any]) -> None:
    """The scale that is passed, not the one that the module has."""
    model = tiny()
    for layer in model.model.layers:
        layer.self_attn.scaling = 0.21
    expected = results(model)
    extra["scaling"] = 0.21
    torch.testing.assert_close(results(tiny()), expected)


@pytest.mark.parametrize("policy", [AdaKV(window=8), SnapKV(window=8)])
def test_opt_scales_its_queries_itself(policy: Any) -> None:
    """One token at a time, in one cache and many together, from uniform and ragged caches."""
    model = family("opt")
    lkv = Eviction(model, policy)
    caches = [lkv.prefill(text(30, seed), budget=12) for seed in range(2)]
    logits = torch.cat([cache.logits for cache in caches])
    together = decode_together(model, caches, logits, 6)
    assert together == [greedy_answer(model, c, c.logits[0], 6) for c in caches]
    with torch.no_grad():
        expected = model(text(30, 0)).logits[:, -1]
    torch.testing.assert_close(caches[0].logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "value", [0.0, -0.5, float("nan"), float("inf"), torch.tensor(0.5), "0.5", True]
)
def test_scales_that_are_no_positive_number(value: Any) -> None:
    with pytest.raises(ValueError, match=r"Attention attends with scaling=.*one positive number"):
        attention_scale("Attention", 16, {"scaling": value})
    assert attention_scale("Attention", 16, {"scaling": None}) == 0.25
    assert attention_scale("Attention", 16, {}) == 0.25
    check_argument("Attention", "scaling", None)


def rearranging(change: str) -> type[nn.Module]:
    """Llama's attention with a line more; nobody can read its source."""
    source = inspect.getsource(modeling_llama.LlamaAttention).replace(
        "        attention_interface: Callable",
        f"        {change}\n        attention_interface: Callable",
    )
    scope = dict(vars(modeling_llama))
    exec(source, scope)
    kind: type[nn.Module] = scope["LlamaAttention"]
    kind.__module__ = modeling_llama.__name__
    return kind


def with_attention(kind: type[nn.Module]) -> Any:
    model = tiny()
    for index, layer in enumerate(model.model.layers):
        own = layer.self_attn
        layer.self_attn = kind(model.config, index).eval()
        layer.self_attn.load_state_dict(own.state_dict())
    return model


@pytest.mark.parametrize(
    "change",
    [
        "value_states = value_states.flip(1)",
        "value_states = value_states.clone()",
        "key_states = key_states * 1.0",
        "key_states, value_states = key_states.clone(), value_states.clone()",
        "key_states, value_states = value_states, key_states.clone()",
    ],
)
def test_other_keys_or_values_than_the_caches(change: str) -> None:
    model = with_attention(rearranging(change))
    lkv = Eviction(model, FullCache())  # the source says nothing
    with pytest.raises((ValueError, RuntimeError), match=r"other keys (or|and) values"):
        lkv.prefill(IDS, budget=8)


def test_a_layer_that_attends_twice() -> None:
    change = (
        "ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, None)("
        "self, query_states, key_states, value_states, attention_mask, scaling=self.scaling)"
    )
    lkv = Eviction(with_attention(rearranging(change)), FullCache())
    with pytest.raises(RuntimeError, match="layer 0 attends twice"):
        lkv.prefill(IDS, budget=8)


def test_masks_of_more_than_causality() -> None:
    model = tiny()
    model.config._attn_implementation_internal = register("sdpa")  # as while a pass runs
    cache = EvictableCache()
    inputs: dict[str, Any] = {
        "config": model.config,
        "inputs_embeds": torch.zeros(1, 5, 48),
        "attention_mask": None,
        cache_argument(model): cache,
    }
    assert create_causal_mask(**inputs).causal
    more = {"or_mask_function": lambda b, h, q, k: q == k}
    assert not create_causal_mask(**inputs, **more).causal
    model.config.sliding_window = 3
    assert not create_sliding_window_causal_mask(**inputs).causal


def test_an_attention_that_uses_such_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    lkv = attached(tiny())
    expected = lkv.prefill(IDS, budget=8).logits
    own = modeling_llama.create_causal_mask

    def bidirectional(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs, or_mask_function=lambda b, h, q, k: q == q)

    with monkeypatch.context() as patch:
        patch.setattr(modeling_llama, "create_causal_mask", bidirectional)
        with pytest.raises(ValueError, match="LlamaAttention masks its attention by more than"):
            lkv.prefill(IDS, budget=8)
    assert lkv.prefill(IDS, budget=8).logits.equal(expected)


def test_lookahead_modules_meet_every_map_before_anything_is_attached() -> None:
    model = family("phi3")  # one map for queries, keys and values
    llama = family("llama")
    modules = modules_of(llama)
    object.__setattr__(modules.config.model, "model_type", model.config.model_type)
    with pytest.raises(ValueError, match="Phi3DecoderLayer has no linear map 'q_proj'"):
        LookaheadKV(model, modules)
    assert model.config._attn_implementation == "sdpa"
    llama.model.layers[0].mlp.up_proj = nn.Linear(64, 32)
    with pytest.raises(ValueError, match=r"layers\[0\] maps 64 to 32 by up_proj"):
        LookaheadKV(llama, modules_of(family("llama")))
