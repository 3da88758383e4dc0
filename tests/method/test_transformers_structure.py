"""Models are refused from their structure, when attached, and stay exactly as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.eviction_model import attached, kept_heads, modules_of, text, tiny
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CLIPVisionConfig,
    GemmaConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipVisionConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from lookaheadkv_kernels.integrations.transformers import Eviction, LookaheadKV
from lookaheadkv_kernels.integrations.transformers import attention as attention_file
from lookaheadkv_kernels.integrations.transformers.attention import attach
from lookaheadkv_kernels.integrations.transformers.structure import check_supported
from lookaheadkv_kernels.policies import FullCache, SnapKV

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = text(20)
TEXT = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.12,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def llava(text_config: Any = None) -> Any:
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=text_config or LlamaConfig(**TEXT),
        image_token_index=96,
    )
    return LlavaForConditionalGeneration(config)


def idefics3() -> Any:
    config = Idefics3Config(
        text_config=LlamaConfig(**TEXT), vision_config=VISION, image_token_id=96
    )
    return Idefics3ForConditionalGeneration(config)


def paligemma() -> Any:
    config = PaliGemmaConfig(
        text_config=GemmaConfig(**TEXT),
        vision_config=SiglipVisionConfig(**VISION),
        projection_dim=64,
        image_token_index=96,
    )
    return PaliGemmaForConditionalGeneration(config)


def qwen2_vl() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    vision = {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 64}
    config = Qwen2VLConfig(text_config={**TEXT, "rope_parameters": rope}, vision_config=vision)
    return Qwen2VLForConditionalGeneration(config)


def with_layer(**parts: Any) -> Any:
    model = tiny()
    for name, part in parts.items():
        setattr(model.model.layers[1], name, part)
    return model


def without_attention() -> Any:
    model = tiny()
    layer = model.model.layers[2]
    layer.mixer = layer.self_attn
    del layer.self_attn
    return model


def with_attribute(name: str, value: Any) -> Any:
    model = tiny()
    setattr(model.model.layers[1].self_attn, name, value)
    return model


class ToyMambaMixer(nn.Module):
    pass


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "nested window": (
        lambda: llava(MistralConfig(**TEXT, sliding_window=8)),
        r"LlavaForConditionalGeneration: layers\[0\]: sliding_window=8",
    ),
    "three axes": (qwen2_vl, r"mrope_section=\[2, 3, 3\]"),
    "bidirectional": (paligemma, "is_causal=False"),
    "encoder-decoder": (
        lambda: T5ForConditionalGeneration(
            T5Config(d_model=64, num_layers=1, d_ff=64, num_heads=4, vocab_size=97)
        ),
        "encoder-decoder",
    ),
    "no head": (lambda: LlamaModel(LlamaConfig(**TEXT)), "forward takes no logits_to_keep"),
    "classifier": (
        lambda: LlamaForSequenceClassification(LlamaConfig(**TEXT, pad_token_id=0)),
        "forward takes no logits_to_keep",
    ),
    "encoder": (
        lambda: BertForMaskedLM(
            BertConfig(
                vocab_size=97,
                hidden_size=64,
                num_hidden_layers=1,
                num_attention_heads=4,
                intermediate_size=64,
            )
        ),
        "has no layers",
    ),
    "a later layer without attention": (without_attention, r"at i = 2, but .*mixer"),
    "cross-attention": (
        lambda: with_layer(encoder_attn=nn.Linear(2, 2)),
        r"layers\[1\] is not supported: cross-attention \(encoder_attn\)",
    ),
    "convolution": (lambda: with_layer(conv=nn.Conv1d(2, 2, 2)), r"layers\[1\]\.conv .* Conv1d"),
    "state space": (lambda: with_layer(mixer=ToyMambaMixer()), r"layers\[1\]\.mixer .* ToyMamba"),
    "window of a layer": (lambda: with_attribute("sliding_window", 16), "sliding_window=16"),
    "bidirectional layer": (lambda: with_attribute("is_causal", False), "is_causal=False"),
    "entries of others": (
        lambda: with_attribute("is_kv_shared_layer", True),
        "the entries of another layer",
    ),
    "head_dim": (
        lambda: tiny(head_dim=12),
        "head_dim=12 is not supported: it must be a multiple of 8 between 8 and 256",
    ),
    "attention": (lambda: with_unknown_attention(), "attention implementation 'mine'"),
}


def with_unknown_attention() -> Any:
    """An attention function that transformers knows and makes no mask for."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register("mine", sdpa_attention_forward)
    return tiny(attn_implementation="mine")


def everything(model: Any) -> list[Any]:
    """What attaching might change."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    return [
        [config._attn_implementation for config in configs.values()],
        [sorted(module.__dict__) for module in model.modules()],
        [sorted(config.__dict__) for config in configs.values()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    ]


@pytest.mark.parametrize("name", REFUSED)
def test_refused_when_attached_and_left_alone(name: str) -> None:
    make, words = REFUSED[name]
    model = make().eval()
    before = everything(model)
    calls: list[Callable[[], object]] = [
        lambda: Eviction(model, FullCache()),
        lambda: LookaheadKV(model, modules_of(tiny())),
        lambda: attach(model),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=words):
            call()
        assert everything(model) == before
    model.train()  # the reason is the structure, not the mode
    with pytest.raises(ValueError, match=words):
        Eviction(model, FullCache())


@pytest.mark.parametrize(
    "attaching",
    [
        lambda model: Eviction(model, SnapKV(window=8), chunk=0),
        lambda model: LookaheadKV(model, modules_of(tiny(kv_heads=3))),
        lambda model: attached(model, mode="prepended"),
        lambda model: attached(model, chunk=-1),
    ],
)
def test_other_errors_leave_the_model_alone(attaching: Callable[[Any], object]) -> None:
    model = tiny()
    before = everything(model)
    with pytest.raises(ValueError):
        attaching(model)
    assert everything(model) == before


def test_an_error_in_the_middle_of_attaching(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    before = everything(model)
    own = type(model.model).set_attn_implementation

    def failing(self: Any, name: str) -> None:
        own(self, name)
        raise MemoryError

    monkeypatch.setattr(type(model.model), "set_attn_implementation", failing)
    with pytest.raises(MemoryError):
        attach(model)
    assert everything(model) == before
    # A class that takes no other attention says so by a warning alone.
    monkeypatch.setattr(type(model.model), "set_attn_implementation", lambda *a: None)
    with pytest.raises(ValueError, match="LlamaModel does not attend through transformers'"):
        attach(model)
    assert everything(model) == before
    assert attention_file.PREFIX not in model.config._attn_implementation


@pytest.mark.parametrize("make", [llava, idefics3])
def test_texts_of_vision_language_models(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    before = everything(model)
    options = {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(IDS, **options)
    with torch.no_grad():
        logits = model(IDS).logits[:, -1]
    lkv = Eviction(model, FullCache())
    cache = lkv.prefill(IDS, budget=1)
    torch.testing.assert_close(cache.logits, logits, rtol=1e-4, atol=1e-5)
    assert lkv.generate(IDS, budget=1, **options).equal(expected)
    assert model.generate(IDS, **options).equal(expected)
    lkv.detach()
    snapkv = Eviction(model, SnapKV(window=8))
    assert snapkv.prefill(IDS, budget=10).layers[1].stored_length == 10
    image = torch.zeros(1, 3, 28, 28)
    with snapkv.evicting(10), pytest.raises(ValueError, match="pixel_values is not available"):
        model(input_ids=IDS, pixel_values=image, logits_to_keep=1)
    snapkv.detach()
    assert everything(model) == before


def test_lookahead_modules_of_a_nested_text_model() -> None:
    torch.manual_seed(0)
    model = llava().eval()
    modules = modules_of(model.get_decoder())
    kept = [
        kept_heads(LookaheadKV(model, modules, **options).prefill(IDS, budget=8))
        for options in ({}, {"mode": "extend"}, {"chunk": 7})
    ]
    assert kept[0] == kept[1] == kept[2]


def test_weights_are_not_looked_at() -> None:
    """A model whose weights are elsewhere is judged by the same structure."""
    check_supported(tiny().to("meta"))
    with pytest.raises(ValueError, match="head_dim=12"):
        check_supported(tiny(head_dim=12).to("meta"))
