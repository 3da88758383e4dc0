"""Lookahead modules: their config, what they add to a model, and their files."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from support.eviction_model import modules_of, text, tiny
from support.helpers import assert_accurate
from torch import nn

from lookaheadkv_kernels.integrations.transformers.compat import decoder_layers, linear
from lookaheadkv_kernels.integrations.transformers.lora import lora_on_last_rows
from lookaheadkv_kernels.lookahead import (
    LookaheadConfig,
    LookaheadModules,
    LoRA,
    ModelShape,
    load_modules,
    save_modules,
)
from lookaheadkv_kernels.lookahead.config import ALL_LINEARS
from lookaheadkv_kernels.lookahead.files import CONFIG_FILE, WEIGHTS_FILE

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = ModelShape("llama", 48, 64, 3, 6, 2, 8)
CONFIG = LookaheadConfig(SHAPE, num_lookahead=4, lora_rank=2)


def modules(config: LookaheadConfig = CONFIG) -> LookaheadModules:
    made = LookaheadModules(config)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def same(a: LookaheadModules, b: LookaheadModules) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return (
        a.config == b.config
        and one.keys() == other.keys()
        and all(one[name].dtype == other[name].dtype for name in one)
        and all(one[name].equal(other[name]) for name in one)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_lookahead": 0}, "num_lookahead must be a whole number >= 1, got 0"),
        ({"num_lookahead": 2.0}, "num_lookahead .*got 2.0"),
        ({"num_lookahead": True}, "num_lookahead .*got True"),
        ({"lora_rank": -1}, "lora_rank .*got -1"),
        ({"lora_rank": "8"}, "lora_rank .*got '8'"),
        ({"lora_alpha": "32"}, "lora_alpha must be a number, got '32'"),
        ({"lora_alpha": float("nan")}, "lora_alpha .*got nan"),
        ({"lora_linears": ("q_proj", "qkv")}, "got 'qkv'"),
        ({"lora_linears": ("q_proj", "q_proj")}, "twice"),
    ],
)
def test_bad_configs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LookaheadConfig(SHAPE, **options)


def test_bad_shapes() -> None:
    with pytest.raises(ValueError, match=r"hidden_size must be a whole number >= 1, got 48\.0"):
        ModelShape("llama", 48.0, 64, 3, 6, 2, 8)  # type: ignore[arg-type]

    class Nothing:
        model_type = "gpt"
        hidden_size = 8

    with pytest.raises(ValueError, match="Nothing has no 'intermediate_size'"):
        ModelShape.of(Nothing())


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_parameters_are_those_that_were_counted(kind: str) -> None:
    model = tiny(kind)
    for linears in (ALL_LINEARS, ("q_proj", "v_proj"), ()):
        config = LookaheadConfig(ModelShape.of(model.config), lora_linears=linears)
        made = LookaheadModules(config)
        assert sum(p.numel() for p in made.parameters()) == config.num_parameters()
        for index, layer in enumerate(decoder_layers(model)):
            last = index == 2
            for name in ALL_LINEARS:
                lora = made.lora(index, name)
                there = name in linears and not (last and name not in ("q_proj", "k_proj"))
                assert (lora is not None) == there
                if lora is not None:
                    base = linear(layer, name)
                    assert (lora.lora_A.in_features, lora.lora_B.out_features) == (
                        base.in_features,
                        base.out_features,
                    )


def test_start_of_training() -> None:
    made = LookaheadModules(LookaheadConfig(SHAPE))
    made.reset_parameters(0.02, torch.Generator().manual_seed(0))
    again = LookaheadModules(LookaheadConfig(SHAPE))
    again.reset_parameters(0.02, torch.Generator().manual_seed(0))
    assert same(made, again)
    assert 0.018 < float(made.embeddings.detach().std()) < 0.022
    loras = [module for module in made.modules() if isinstance(module, LoRA)]
    x = torch.randn(5, 48)
    assert all(lora.lora_A.weight.any() for lora in loras)
    assert all(not lora(x[:, : lora.lora_A.in_features]).any() for lora in loras[:3])


def test_lora_is_a_scaled_product() -> None:
    lora = LoRA(5, 3, 2, 32.0)
    nn.init.normal_(lora.lora_B.weight)
    x = torch.randn(4, 5)
    torch.testing.assert_close(lora(x), x @ lora.lora_A.weight.T @ lora.lora_B.weight.T * 16)
    assert lora(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_adds_in_place(dtype: torch.dtype) -> None:
    lora = LoRA(5, 3, 2, 32.0)
    nn.init.normal_(lora.lora_B.weight)
    x, output = torch.randn(3, 9, 5, dtype=dtype), torch.randn(3, 9, 3, dtype=dtype)
    apart = output[:, -4:] + lora(x[:, -4:])
    exact = output[:, -4:].double() + lora.double()(x[:, -4:].double())
    lora.float()
    before = output[:, :5].clone()
    with torch.no_grad():
        lora.add_to(output[:, -4:], x[:, -4:])
    assert_accurate(output[:, -4:], apart, exact, dtype)
    assert output[:, :5].equal(before)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_only_the_last_rows_get_lora_and_no_earlier_row_changes(kind: str) -> None:
    model = tiny(kind)
    made = modules_of(model)
    ids = text(20)
    linears: dict[tuple[int, str], list[Any]] = {}
    for index, layer in enumerate(decoder_layers(model)):
        for name in ALL_LINEARS:
            seen = linears.setdefault((index, name), [])
            linear(layer, name).register_forward_hook(
                lambda module, args, out, seen=seen: seen.append((args[0].clone(), out.clone()))
            )
    with torch.no_grad():
        plain = model(ids).logits
        with lora_on_last_rows(model, made):
            changed = model(ids).logits
        assert model(ids).logits.equal(plain)
    assert changed[:, :16].equal(plain[:, :16])
    assert not changed[:, 16:].allclose(plain[:, 16:])
    for (index, name), runs in linears.items():
        # The second run's first sight of an output is before LoRA, the model's is after it: what
        # LoRA did is seen in the inputs of the maps behind.
        (_, first), (x, second), _ = runs
        assert second[:, :16].equal(first[:, :16])
        expected = linear(decoder_layers(model)[index], name)
        torch.testing.assert_close(
            second,
            x @ expected.weight.T + (0 if expected.bias is None else expected.bias),
            rtol=1e-4,
            atol=1e-4,
        )


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_files_give_back_what_was_saved(tmp_path: Path, dtype: torch.dtype | None) -> None:
    made = modules()
    save_modules(made, tmp_path / "deep" / "er", dtype=dtype, training={"seed": 3})
    read = load_modules(str(tmp_path / "deep" / "er"))
    assert same(read, made.to(dtype) if dtype else made)
    assert all(not p.requires_grad and p.device.type == "cpu" for p in read.parameters())
    folder = tmp_path / "deep" / "er"
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    assert json.loads((folder / CONFIG_FILE).read_text())["training"] == {"seed": 3}


def test_nothing_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("pickle")

    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    made = modules()
    save_modules(made, tmp_path)
    assert same(load_modules(tmp_path), made)
    # A pickle in the place of the weights is not opened.
    (tmp_path / WEIGHTS_FILE).write_bytes(b"\x80\x04\x95")
    with pytest.raises(ValueError, match="damaged"):
        load_modules(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no lookahead modules"):
        load_modules(tmp_path / "nowhere")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        save_modules(modules(), tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            load_modules(tmp_path)


def test_damaged_weights(tmp_path: Path) -> None:
    save_modules(modules(), tmp_path)
    path = tmp_path / WEIGHTS_FILE
    good = path.read_bytes()
    for bad in (b"", good[:-1], good[:100], good + b"x", good[:-5] + b"\xff" + good[-4:]):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"lookahead\.safetensors is damaged"):
            load_modules(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b'{"a": NaN'])
def test_damaged_json(tmp_path: Path, content: bytes) -> None:
    save_modules(modules(), tmp_path)
    (tmp_path / CONFIG_FILE).write_bytes(content)
    with pytest.raises(ValueError, match="config"):
        load_modules(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version must be 1, got 2"),
        ({"format_version": None}, "format_version must be 1, got None"),
        ({"num_lookahead": 5}, "does not fit its config"),
        ({"num_lookahead": "4"}, "num_lookahead"),
        ({"lora_rank": 3}, "does not fit its config"),
        ({"lora_rank": 10**15}, "does not fit its config"),
        ({"lora_linears": ["q_proj"]}, "does not fit its config"),
        ({"lora_linears": 3}, "lookahead config"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"model": None}, "lookahead config"),
        ({"model": {"hidden_size": 48}}, "lookahead config"),
        ({"more": 1}, "lookahead config.*more"),
        ({"weights_sha256": None}, "is damaged or belongs to another"),
    ],
)
def test_configs_that_do_not_belong(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save_modules(modules(), tmp_path)
    path = tmp_path / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_modules(tmp_path)


def test_files_of_different_saves(tmp_path: Path) -> None:
    save_modules(modules(), tmp_path / "a")
    save_modules(modules(), tmp_path / "b")
    (tmp_path / "a" / WEIGHTS_FILE).write_bytes((tmp_path / "b" / WEIGHTS_FILE).read_bytes())
    with pytest.raises(ValueError, match=r"belongs to another config\.json"):
        load_modules(tmp_path / "a")


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_an_interrupted_save_leaves_the_old_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    old = modules()
    save_modules(old, tmp_path)

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, fails, interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_modules(modules(), tmp_path)
    assert same(load_modules(tmp_path), old)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_an_end_between_the_two_files_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_modules(modules(), tmp_path)
    own = os.replace

    def once(source: Any, target: Any) -> None:
        if str(target).endswith(CONFIG_FILE):
            raise KeyboardInterrupt
        own(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", once)
        with pytest.raises(KeyboardInterrupt):
            save_modules(modules(), tmp_path)
    with pytest.raises(ValueError, match="belongs to another"):
        load_modules(tmp_path)
