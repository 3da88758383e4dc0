"""What is of a wrong type is refused at once, by the argument's name and what came instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.eviction_model import attached, kept_heads, modules_of, text, tiny
from torch import Tensor, nn

from lookaheadkv_kernels.integrations.transformers import Eviction, LookaheadKV
from lookaheadkv_kernels.policies import POLICY_NAMES, FullCache, SnapKV, StreamingLLM

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = text(30)
NEEDS_MORE = {"lookahead": "modules", "speckv": "draft_model"}


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_policies_by_the_names_of_the_commands(name: str) -> None:
    model = tiny()
    if name in NEEDS_MORE:
        message = f"policy '{name}' needs more than its name: .*{NEEDS_MORE[name]}"
        with pytest.raises(ValueError, match=message):
            Eviction(model, name)
    else:
        eviction = Eviction(model, name)
        assert eviction.policy.name == name
    if name == "streaming_llm":
        kept = kept_heads(eviction.prefill(IDS, budget=8))
        assert kept == kept_heads(Eviction(model, StreamingLLM()).prefill(IDS, budget=8))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("snapkv2", "unknown policy 'snapkv2'; there are full, lookahead, snapkv"),
        ("", "unknown policy ''"),
        (SnapKV, "policy must be an object, got the class SnapKV: call it"),
        (nn.Module, "got the class Module"),
        (None, "policy must be a Policy or the name of one, got NoneType; there are full"),
        (lambda call: call, "got function"),
        ([SnapKV()], "got list"),
        (modules_of(tiny()), "got LookaheadModules"),
        (128, "got int"),
    ],
)
def test_what_is_no_policy(policy: Any, message: str) -> None:
    model = tiny()
    with pytest.raises(ValueError, match=message):
        Eviction(model, policy)
    assert not model.get_decoder()._forward_pre_hooks


@pytest.mark.parametrize("value", ["8", 8.0, True, [8], 0, -3])
def test_chunks(value: Any) -> None:
    with pytest.raises(ValueError, match="chunk must be"):
        Eviction(tiny(), "snapkv", chunk=value)
    with pytest.raises(ValueError, match="chunk must be"):
        attached(tiny(), chunk=value)


@pytest.mark.parametrize("mode", ["prepended", None, 1, True, ["extend"]])
def test_modes(mode: Any) -> None:
    with pytest.raises(ValueError, match="mode must be 'appended' or 'extend', got"):
        attached(tiny(), mode=mode)


def test_swapped_and_wrong_arguments_of_constructors() -> None:
    model = tiny()
    modules = modules_of(model)
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: Eviction(SnapKV(), model), "SnapKV is not a transformers model"),
        (lambda: Eviction("snapkv", model), "str is not a transformers model"),
        (lambda: Eviction(None, "snapkv"), "NoneType is not a transformers model"),
        (lambda: Eviction(type(model), "snapkv"), "type is not a transformers model"),
        (lambda: LookaheadKV(modules, model), "LookaheadModules is not a transformers model"),
        (lambda: LookaheadKV(model, "name"), "modules must be LookaheadModules, got str"),
        (lambda: LookaheadKV(model, None), "modules must be LookaheadModules, got NoneType"),
        (lambda: LookaheadKV(model, SnapKV()), "modules must be LookaheadModules, got SnapKV"),
        (
            lambda: LookaheadKV.from_pretrained(model, "smollm2-135m-instruct"),
            "name must be a str or a Path, got LlamaForCausalLM: .* the name first",
        ),
        (lambda: LookaheadKV.from_pretrained(None, model), "name must be .* got NoneType"),
        (lambda: LookaheadKV.from_pretrained(modules, model), "name must be .* got LookaheadMod"),
        (lambda: LookaheadKV.from_pretrained("x", "y"), "str is not a transformers model"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
    assert not model.get_decoder()._forward_pre_hooks
    assert model.config._attn_implementation == "sdpa"


ROW = IDS[0].tolist()
ONES = torch.ones(2, 3, dtype=torch.long)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"input_ids": ROW}, "input_ids must be a tensor, got list"),
    ({"input_ids": [ROW]}, "input_ids must be a tensor, got list"),
    ({"input_ids": tuple(ROW)}, "input_ids must be a tensor, got tuple"),
    ({"input_ids": np.array([ROW])}, "input_ids must be a tensor, got ndarray"),
    ({"input_ids": "a text"}, "input_ids must be a tensor, got str"),
    ({"input_ids": {"input_ids": IDS}}, r"got dict; pass a tokenizer's result as \*\*inputs"),
    ({"input_ids": IDS[0]}, r"input_ids must be \[B, N\], got \[30\]"),
    ({"input_ids": IDS[0, 0]}, r"input_ids must be \[B, N\], got \[\]"),
    ({"input_ids": IDS[None]}, r"input_ids must be \[B, N\], got \[1, 1, 30\]"),
    ({"input_ids": IDS.float()}, "input_ids must be of dtype int64 or int32, got torch.float32"),
    ({"input_ids": IDS > 3}, "input_ids must be of dtype int64 or int32, got torch.bool"),
    ({"input_ids": IDS.short()}, "got torch.int16"),
    (
        {"input_ids": ONES, "attention_mask": [[1, 1, 1]] * 2},
        "attention_mask must be .*, got list",
    ),
    ({"input_ids": ONES, "attention_mask": True}, "attention_mask must be a tensor, got bool"),
    ({"input_ids": ONES, "attention_mask": ONES[0]}, r"attention_mask must be \[2, 3\], got \[3\]"),
    (
        {"input_ids": ONES, "attention_mask": torch.zeros(2, 3).masked_fill(ONES == 0, -1e9) - 1},
        "attention_mask must be 0 at padding and 1 elsewhere, got values from -1.0 to -1.0",
    ),
    (
        {"input_ids": ONES, "position_ids": [[0, 1, 2]] * 2},
        "position_ids must be .*, got list",
    ),
    ({"input_ids": ONES, "position_ids": ONES.float()}, "position_ids must be of dtype int64"),
    ({"inputs_embeds": [[0.0] * 48]}, "inputs_embeds must be a tensor, got list"),
    (
        {"inputs_embeds": torch.ones(2, 3, 47)},
        r"must be \[B, N, 48\], got \[2, 3, 47\]",
    ),
    (
        {"inputs_embeds": torch.ones(3, 48)},
        r"must be \[B, N, hidden\], got \[3, 48\]",
    ),
    ({"inputs_embeds": torch.ones(2, 3, 48).long()}, "inputs_embeds must be floating-point, got"),
]


@pytest.mark.parametrize(("inputs", "message"), WRONG)
def test_prompts_of_wrong_types(inputs: dict[str, Any], message: str) -> None:
    lkv = attached(tiny())
    runs = []
    lkv.model.model.register_forward_pre_hook(lambda *a: runs.append(1))
    with pytest.raises(ValueError, match=message):
        lkv.prefill(**inputs, budget=2)
    with pytest.raises(ValueError, match=message):
        lkv.generate(**inputs, budget=2, max_new_tokens=2)
    with lkv.evicting(2):
        with pytest.raises(ValueError, match=message):
            lkv.model.generate(**inputs, max_new_tokens=2)
        if isinstance(next(iter(inputs.values())), Tensor):
            with pytest.raises(ValueError, match=message):
                lkv.model(**inputs, logits_to_keep=1)
    assert not runs


def test_int32_ids_are_ids() -> None:
    lkv = attached(tiny())
    expected = lkv.prefill(IDS, budget=8)
    assert kept_heads(lkv.prefill(IDS.int(), budget=8)) == kept_heads(expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_of_another_dtype_is_refused_with_what_to_do(dtype: torch.dtype) -> None:
    lkv = attached(tiny())
    name = lkv.runner._cache_argument
    cache = lkv.prefill(IDS, budget=8)
    message = rf"torch.autocast\('cpu', {dtype}\) is on .* torch.float32: .* dtype={dtype}"

    def in_a_block() -> Any:
        with lkv.evicting(8):
            return lkv.model.generate(IDS, max_new_tokens=2)

    calls: list[Callable[[], Any]] = [
        lambda: lkv.prefill(IDS, budget=8),
        lambda: lkv.prefill(IDS, budget=8, cache=cache),
        lambda: lkv.generate(IDS, budget=8, max_new_tokens=2),
        in_a_block,
        lambda: lkv.model(input_ids=IDS[:, :1], **{name: cache}),
        lambda: Eviction(lkv.model, FullCache()).prefill(IDS, budget=8),
    ]
    for call in calls:
        with torch.autocast("cpu", dtype), pytest.raises(RuntimeError, match=message):
            call()
    assert cache.get_seq_length() == 30
    with torch.autocast("cpu", dtype):  # what evicts nothing is as it was
        lkv.model(IDS)
