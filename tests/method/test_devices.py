"""Models over several devices, or on disk: everything lives where its layer runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.eviction_model import attached, kept_heads, modules_of, text, tiny
from torch._subclasses.fake_tensor import FakeTensorMode

from lookaheadkv_kernels.integrations.transformers import Eviction, LookaheadKV
from lookaheadkv_kernels.integrations.transformers.devices import (
    execution_device,
    input_device,
    place_modules,
)
from lookaheadkv_kernels.policies import make_policy

accelerate = pytest.importorskip("accelerate")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),
]
NEW = 5
OPTIONS = {"max_new_tokens": NEW, "do_sample": False}
# Where the parts of the model lie: in memory, offloaded to memory, offloaded to disk.
MAPS: dict[str, dict[str, Any]] = {
    "one device": {"": "cpu"},
    "memory and disk": {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.layers.2": "disk",
        "model.norm": "disk",
        "model.rotary_emb": "cpu",
        "lm_head": "disk",
    },
    "all on disk but one layer": {
        "model.embed_tokens": "disk",
        "model.layers.0": "disk",
        "model.layers.1": "cpu",
        "model.layers.2": "disk",
        "model.norm": "disk",
        "model.rotary_emb": "disk",
        "lm_head": "disk",
    },
}


def spread(folder: Path, where: str) -> Any:
    """The tiny model, loaded as users load models that do not fit."""
    model = tiny()
    model.save_pretrained(folder / "model")
    return type(model).from_pretrained(
        folder / "model", device_map=MAPS[where], offload_folder=folder / "offload"
    )


def offloaded(model: Any) -> int:
    return sum(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("way", [{}, {"mode": "extend"}, {"chunk": 9}])
@pytest.mark.parametrize("where", MAPS)
def test_offloaded_models_evict_as_others(tmp_path: Path, where: str, way: dict) -> None:
    whole, model = attached(tiny(), **way), spread(tmp_path, where)
    assert (offloaded(model) > 0) == (where != "one device")
    lkv = LookaheadKV(model, modules_of(whole.model), **way)
    rows = [text(40), text(23, 1)]
    ids = torch.zeros(2, 40, dtype=torch.long)
    ids[0], ids[1, :23] = rows[0][0], rows[1][0]
    expected, cache = (one.prefill(ids, budget=9) for one in (whole, lkv))
    for row in range(2):
        assert kept_heads(cache, row) == kept_heads(expected, row)
    torch.testing.assert_close(cache.logits, expected.logits, rtol=1e-4, atol=1e-4)
    out = lkv.generate(ids, budget=9, **OPTIONS)
    assert out.equal(whole.generate(ids, budget=9, **OPTIONS))
    again = lkv.prefill(text(12, 2).expand(2, -1), budget=9, cache=cache)
    assert again.row_lengths().tolist() == [52, 35]
    lkv.detach()
    assert (offloaded(model) > 0) == (where != "one device")


@pytest.mark.parametrize("name", ["snapkv", "h2o", "adakv", "laq", "speckv", "oracle"])
def test_policies_on_an_offloaded_model(tmp_path: Path, name: str) -> None:
    model = spread(tmp_path, "all on disk but one layer")
    options: dict[str, Any] = {
        "snapkv": {"window": 4},
        "h2o": {"num_recent": 4},
        "adakv": {"window": 4},
        "laq": {"window": 4, "draft_window": 4, "draft_tokens": 3},
        "speckv": {"window": 4, "draft_tokens": 3},
        "oracle": {"max_tokens": 3},
    }[name]
    drafts = [{}, {}] if name != "speckv" else [{"draft_model": tiny()}, {"draft_model": model}]
    pair = [
        Eviction(one, make_policy(name, **options, **draft))
        for one, draft in zip((tiny(), model), drafts, strict=True)
    ]
    caches = [eviction.prefill(text(40), budget=9) for eviction in pair]
    assert kept_heads(caches[0]) == kept_heads(caches[1])
    outs = [eviction.generate(text(40), budget=9, **OPTIONS) for eviction in pair]
    assert outs[0].equal(outs[1])


def test_modules_of_an_offloaded_model_live_in_memory(tmp_path: Path) -> None:
    model = spread(tmp_path, "all on disk but one layer")
    assert model.device.type == "meta"
    assert input_device(model) == torch.device("cpu")
    lkv = LookaheadKV(model, modules_of(tiny()))
    assert all(not p.is_meta for p in lkv.policy.modules.parameters())


def test_execution_devices() -> None:
    layer = torch.nn.Linear(2, 2)
    assert execution_device(layer) == torch.device("cpu")
    assert execution_device(torch.nn.Dropout()) == torch.device("cpu")
    assert execution_device(layer.to("meta")) == torch.device("meta")
    for given, found in (("cpu", "cpu"), ("cuda:1", "cuda:1"), (1, "cuda:1")):
        layer._hf_hook = SimpleNamespace(execution_device=given)
        kind = torch.accelerator.current_accelerator()
        expected = found if kind is None else found.replace("cuda", kind.type)
        assert str(execution_device(layer)) in (found, expected)
        assert str(execution_device(torch.nn.Sequential(layer))) in (found, expected)
        hooks = [SimpleNamespace(), layer._hf_hook]
        layer._hf_hook = SimpleNamespace(hooks=hooks)
        assert str(execution_device(layer)) in (found, expected)


def fake_spread(model: Any) -> Any:
    """On three devices that this machine need not have, as accelerate spreads a model."""
    where = {
        "model.embed_tokens": "cuda:0",
        "model.rotary_emb": "cuda:0",
        "model.layers.0": "cuda:0",
        "model.layers.1": "cuda:1",
        "model.layers.2": "cuda:2",
        "model.norm": "cuda:2",
        "lm_head": "cuda:2",
    }
    for name, device in where.items():
        part = model.get_submodule(name)
        for module in part.modules():
            for key, parameter in list(module.named_parameters(recurse=False)):
                value = torch.empty_like(parameter, device=device)
                setattr(module, key, torch.nn.Parameter(value, requires_grad=False))
            for key, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, key, torch.empty_like(buffer, device=device))
    return model


def test_modules_on_several_devices() -> None:
    model = tiny()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake_spread(model)
        modules = place_modules(modules_of(tiny()), model)
        assert input_device(model) == torch.device("cuda:0")
        assert modules.embeddings.device == torch.device("cuda:0")
        for index, name, _, _ in modules.config.loras():
            lora = modules.lora(index, name)
            assert lora is not None
            for weight in lora.parameters():
                assert weight.device == torch.device("cuda", index)


@pytest.mark.parametrize("way", [{}, {"mode": "extend"}, {"chunk": 9}])
def test_a_prefill_over_two_devices(way: dict) -> None:
    """What a layer keeps stays where the layer is; accelerate's hooks carry the rest.

    The second device is torch's meta device, which every machine has: its tensors have no values,
    and nothing comes back from it, but an operation on tensors of both devices is an error.
    """
    model = tiny()
    for name in ("model.layers.1", "model.layers.2", "model.norm", "lm_head"):
        model.get_submodule(name).to("meta")
    for name, module in model.named_modules():
        weights = next(module.parameters(), None)
        if weights is not None and name not in ("", "model"):
            hook = accelerate.hooks.AlignDevicesHook(
                execution_device=weights.device, skip_keys=["cache", "past_key_values"]
            )
            accelerate.hooks.add_hook_to_module(module, hook)
    model.hf_device_map = {"": "two devices"}
    lkv = LookaheadKV(model, modules_of(tiny()), **way)
    cache = lkv.prefill(text(40), budget=9)
    for index, layer in enumerate(cache.layers):
        for tensor in (layer.keys, layer.values, layer.kept_positions):
            assert tensor.device.type == ("cpu" if index == 0 else "meta")
        assert layer.stored_length == 9
    whole = attached(tiny(), **way).prefill(text(40), budget=9)
    assert kept_heads(whole)[0] == cache.layers[0].kept_positions[0].tolist()
    assert cache.logits.shape == whole.logits.shape


def test_a_lora_follows_its_input() -> None:
    """A model that is moved after its modules were placed."""
    lora = modules_of(tiny()).lora(0, "q_proj")
    assert lora is not None
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(1, 4, 48, device="cuda:1")
        assert lora(x).device == torch.device("cuda:1")
        out = torch.empty(1, 4, 48, device="cuda:1")
        lora.add_to(out, x)
        assert out.device == torch.device("cuda:1")
