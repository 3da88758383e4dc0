"""What eviction cannot do is an error that names the argument, before the model runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.eviction_model import attached, kept_heads, modules_of, text, tiny
from torch import nn
from transformers import DynamicCache, GenerationConfig

from lookaheadkv_kernels.integrations.transformers import EvictableCache, Eviction, LookaheadKV
from lookaheadkv_kernels.policies import FullCache, SnapKV

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = text(30)


@pytest.fixture
def lkv() -> Any:
    """Its model counts how often the decoder runs."""
    lkv = attached(tiny())
    lkv.runs = 0

    def count(*args: Any) -> None:
        lkv.runs += 1

    lkv.model.model.register_forward_pre_hook(count)
    return lkv


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0, "budget must be >= 1, got 0"),
        (-1, "got -1"),
        (1.5, r"budget as a ratio must be in \(0, 1\], got 1.5"),
        (0.0, "got 0.0"),
        (float("nan"), "got nan"),
        (True, "got True"),
        (None, "got None"),
        ("12", "budget"),
        ([8, 8], "budget: 2 entries for a model of 3 layers"),
        ([8, 0, 8], "got 0"),
        ([8, False, 8], "got False"),
        ([], "budget: 0 entries"),
    ],
)
def test_budgets(lkv: Any, budget: Any, message: str) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: lkv.prefill(IDS, budget=budget),
        lambda: lkv.generate(IDS, budget=budget, max_new_tokens=2),
        lambda: lkv.evicting(budget).__enter__(),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()
    assert lkv.runs == 0
    assert "forward" not in lkv.model.__dict__


ONES = torch.ones(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": ONES, "inputs_embeds": torch.ones(2, 3, 48)}, "exactly one"),
        ({"input_ids": ONES[0]}, r"input_ids must be \[B, N\], got \[3\]"),
        ({"inputs_embeds": torch.ones(2, 3)}, r"inputs_embeds must be \[B, N, hidden\]"),
        ({"input_ids": ONES[:, :0]}, r"the prompt is empty: input_ids \[2, 0\]"),
        ({"input_ids": ONES, "attention_mask": ONES[:1]}, r"attention_mask must be \[2, 3\]"),
        (
            {"input_ids": ONES, "attention_mask": torch.ones(2, 9)},
            r"attention_mask must be \[2, 3\], got \[2, 9\]",
        ),
        (
            {"input_ids": ONES, "attention_mask": torch.ones(2, 1, 3, 3)},
            r"got \[2, 1, 3, 3\]",
        ),
        (
            {"input_ids": ONES, "attention_mask": torch.tensor([[1, 0, 1], [1, 1, 1]])},
            "padding must be at one end",
        ),
        (
            {"input_ids": ONES, "attention_mask": torch.tensor([[0, 0, 0], [1, 1, 1]])},
            "a row without any token",
        ),
        ({"input_ids": ONES, "position_ids": ONES[:, :2]}, r"position_ids must be \[2, 3\]"),
    ],
)
def test_prompts(lkv: Any, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lkv.prefill(**inputs, budget=2)
    assert lkv.runs == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_cache": False}, "use_cache=False"),
        ({"prefill_chunk_size": 8}, "prefill_chunk_size=8.*chunk="),
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
        ({"cache_implementation": "offloaded"}, "cache_implementation='offloaded'"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"cache": DynamicCache()}, "cannot go on from a DynamicCache"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states"),
    ],
)
def test_options_of_generate(lkv: Any, options: dict[str, Any], message: str) -> None:
    if "cache" in options:
        options = {lkv.runner._cache_argument: DynamicCache()}
    with pytest.raises(ValueError, match=message):
        lkv.generate(IDS, budget=8, max_new_tokens=3, **options)
    with lkv.evicting(8), pytest.raises(ValueError, match=message):
        lkv.model.generate(IDS, max_new_tokens=3, **options)
    assert lkv.runs == 0


def test_options_in_the_models_own_generation_config(lkv: Any) -> None:
    lkv.model.generation_config.prefill_chunk_size = 8
    with pytest.raises(ValueError, match="prefill_chunk_size=8"):
        lkv.generate(IDS, budget=8, max_new_tokens=3)
    lkv.model.generation_config.prefill_chunk_size = None
    config = GenerationConfig(max_new_tokens=3, prefill_chunk_size=9)
    with lkv.evicting(8), pytest.raises(ValueError, match="prefill_chunk_size=9"):
        lkv.model.generate(IDS, config)
    assert lkv.runs == 0


def test_assisted_generation(lkv: Any) -> None:
    with pytest.raises(ValueError, match="assistant_model='LlamaForCausalLM'"):
        lkv.generate(IDS, budget=8, max_new_tokens=3, assistant_model=tiny())
    cache = lkv.prefill(IDS, budget=8)
    with pytest.raises(NotImplementedError, match="cannot be cropped"):
        cache.crop(-1)
    so_far = torch.cat([IDS, cache.logits.argmax(dim=-1, keepdim=True)], dim=1)
    with pytest.raises((ValueError, NotImplementedError), match="crop"):
        lkv.model.generate(
            so_far,
            max_new_tokens=4,
            prompt_lookup_num_tokens=2,
            **{lkv.runner._cache_argument: cache},
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "logits_to_keep=1, got 0"),
        ({"logits_to_keep": 2}, "logits_to_keep=1, got 2"),
        ({"logits_to_keep": 1, "labels": IDS}, "labels is not available"),
        ({"logits_to_keep": 1, "use_cache": False}, "use_cache=False"),
        ({"logits_to_keep": 1, "return_dict": False}, "return_dict=False"),
        ({"logits_to_keep": 1, "output_attentions": True}, "output_attentions"),
        ({"logits_to_keep": 1, "pixel_values": torch.ones(1)}, "pixel_values"),
        ({"logits_to_keep": 1, "attention_mask": torch.ones(1, 1, 30, 30)}, "attention_mask"),
    ],
)
def test_forwards_within_the_block(lkv: Any, options: dict[str, Any], message: str) -> None:
    with lkv.evicting(8), pytest.raises(ValueError, match=message):
        lkv.model(input_ids=IDS, **options)
    assert lkv.runs == 0


def test_positional_arguments_and_started_caches_within_the_block(lkv: Any) -> None:
    name = lkv.runner._cache_argument
    started = lkv.model(input_ids=IDS, use_cache=True)[name]
    with lkv.evicting(8):
        with pytest.raises(TypeError, match="by keyword"):
            lkv.model(IDS, logits_to_keep=1)
        for more in (IDS, IDS[:, :1]):
            with pytest.raises(ValueError, match="cannot go on from a DynamicCache"):
                lkv.model(input_ids=more, logits_to_keep=1, **{name: started})
        out = lkv.model(input_ids=IDS, logits_to_keep=1)
        assert out[name].layers[0].stored_length == 8
        if name == "cache":  # the old name still works for plain models
            old = lkv.model(input_ids=IDS, logits_to_keep=1, past_key_values=EvictableCache())
            assert kept_heads(old.cache) == kept_heads(out.cache)


def test_caches_of_other_kinds_and_sizes(lkv: Any) -> None:
    with pytest.raises(ValueError, match="cannot go on from a DynamicCache"):
        lkv.prefill(IDS, budget=8, cache=DynamicCache())
    cache = lkv.prefill(IDS, budget=8)
    with pytest.raises(ValueError, match="input_ids has 2 rows, the cache 1"):
        lkv.prefill(IDS.expand(2, -1), budget=8, cache=cache)
    with pytest.raises(ValueError, match="has 29 tokens, of which the cache has seen 30"):
        lkv.generate(IDS[:, 1:], budget=8, max_new_tokens=2, **{lkv.runner._cache_argument: cache})
    mask = torch.ones(1, 1, 1, 31)
    with pytest.raises(ValueError, match=r"2-D attention masks \[B, tokens\], got \[1, 1, 1, 31\]"):
        lkv.model(
            input_ids=IDS[:, :1], attention_mask=mask, **{lkv.runner._cache_argument: cache.fork()}
        )


def test_an_error_in_a_later_turn_leaves_the_cache_as_it_was() -> None:
    model = tiny()
    snapkv = Eviction(model, SnapKV(window=8))
    cache = snapkv.prefill(IDS, budget=12)
    kept, positions = kept_heads(cache), [layer.positions() for layer in cache.layers]
    with pytest.raises(RuntimeError, match="budget"):
        snapkv.prefill(text(20, 1), budget=3, cache=cache)
    assert cache.get_seq_length() == 30
    assert kept_heads(cache) == kept
    assert all(
        layer.positions().equal(before)
        for layer, before in zip(cache.layers, positions, strict=True)
    )
    snapkv.prefill(text(20, 1), budget=12, cache=cache)


def test_a_detached_model_does_not_run_on_an_evicted_cache(lkv: Any) -> None:
    name = lkv.runner._cache_argument
    cache = lkv.prefill(IDS, budget=8)
    lkv.detach()
    with pytest.raises(RuntimeError, match="detached"):
        lkv.model(input_ids=IDS[:, :1], **{name: cache})
    with pytest.raises(RuntimeError, match="detached"):
        lkv.prefill(IDS, budget=8)
    with pytest.raises(RuntimeError, match="detached"):
        lkv.generate(IDS, budget=8, max_new_tokens=2)


def test_a_cache_that_the_model_does_not_fill(lkv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # As training mode with gradient checkpointing does in some releases.
    layer = lkv.model.model.layers[2]
    own = layer.forward
    name = lkv.runner._cache_argument
    monkeypatch.setattr(layer, "forward", lambda *a, **k: own(*a, **(k | {name: None})))
    with pytest.raises(RuntimeError, match="other keys and values than its cache returned"):
        lkv.prefill(IDS, budget=8)
    lkv.model.train()
    with pytest.raises(RuntimeError, match=r"call model\.eval"):
        lkv.prefill(IDS, budget=8)


def test_models_of_other_kinds() -> None:
    with pytest.raises(ValueError, match="sliding"):
        Eviction(tiny("mistral", sliding_window=16), FullCache())
    with pytest.raises(ValueError, match="only full attention is supported"):
        window = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
        Eviction(tiny("qwen2", **window), FullCache())

    class Wrapper(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.base_model, self.config = model, model.config

    with pytest.raises(ValueError, match="Wrapper is not a transformers model"):
        Eviction(Wrapper(tiny()), FullCache())


def test_modules_of_another_model() -> None:
    model = tiny()
    other = modules_of(tiny(kv_heads=3))
    with pytest.raises(ValueError, match=r"num_key_value_heads=3.*num_key_value_heads=2"):
        LookaheadKV(model, other)
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="mode must be"):
        attached(model, mode="prepended")
    with pytest.raises(ValueError, match="chunk must be >= 1, got 0"):
        attached(model, chunk=0)
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        LookaheadKV.from_pretrained("/nowhere", model)
