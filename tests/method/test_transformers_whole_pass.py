"""Modules that compute statistics over all rows of a pass never see the learned rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.eviction_model import attached, kept_heads, modules_of, text, tiny
from torch import Tensor, nn

from lookaheadkv_kernels.integrations.transformers import Eviction, LookaheadKV
from lookaheadkv_kernels.integrations.transformers.structure import decoder_of
from lookaheadkv_kernels.integrations.transformers.whole_pass import modules_over_rows
from lookaheadkv_kernels.policies import SnapKV

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = text(30)


class PerTensor(nn.Module):
    """A linear map of int8 inputs with one scale for all rows of a pass."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias

    def scale(self, x: Tensor) -> Tensor:
        return x.abs().max() / 127

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale(x).clamp(min=1e-9)
        return nn.functional.linear((x / scale).round() * scale, self.weight, self.bias)


class PerRow(PerTensor):
    """The same with a scale for each row, as most quantisation today."""

    def scale(self, x: Tensor) -> Tensor:
        return x.abs().amax(dim=-1, keepdim=True) / 127


class WholePassNorm(nn.Module):
    """A leaf with a weight of one dimension that normalises by all rows."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.weight = base.weight

    def forward(self, x: Tensor) -> Tensor:
        return x / x.pow(2).mean().add(1e-6).sqrt() * self.weight


class WholePassQuantiser(nn.Module):
    """A leaf without weights in front of a map."""

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().max().clamp(min=1e-9) / 127
        return (x / scale).round() * scale


def with_maps(kind: Any) -> Any:
    model = tiny()
    for layer in model.model.layers:
        layer.self_attn.q_proj = kind(layer.self_attn.q_proj)
        layer.mlp.down_proj = kind(layer.mlp.down_proj)
    return model


def with_norms() -> Any:
    model = tiny()
    model.model.layers[1].input_layernorm = WholePassNorm(model.model.layers[1].input_layernorm)
    return model


def with_quantisers() -> Any:
    model = tiny()
    own = model.model.layers[1].mlp
    model.model.layers[1].mlp.act_fn = nn.Sequential(own.act_fn, WholePassQuantiser())
    return model


def with_torch_quantisation() -> Any:
    if not [e for e in torch.backends.quantized.supported_engines if e != "none"]:
        pytest.skip("torch has no engine for quantised maps here")
    model = tiny()
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


OVER_ROWS: dict[str, Callable[[], Any]] = {
    "maps": lambda: with_maps(PerTensor),
    "norms": with_norms,
    "quantisers": with_quantisers,
    "torch": with_torch_quantisation,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", OVER_ROWS)
def test_the_prompt_is_the_plain_models(name: str) -> None:
    model = OVER_ROWS[name]()
    with torch.no_grad():
        expected = copy.deepcopy(model)(IDS, logits_to_keep=1).logits[:, -1]
    modules = modules_of(tiny(), 32)
    for mode in ("appended", "extend"):
        cache = LookaheadKV(copy.deepcopy(model), modules, mode=mode).prefill(IDS, budget=60)
        torch.testing.assert_close(cache.logits, expected, rtol=0, atol=1e-5)
    cut = [
        kept_heads(LookaheadKV(copy.deepcopy(model), modules, mode=mode).prefill(IDS, budget=8))
        for mode in ("appended", "extend")
    ]
    assert cut[0] == cut[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", OVER_ROWS)
def test_chunks_would_be_another_prompt(name: str) -> None:
    model = OVER_ROWS[name]()
    first = modules_over_rows(decoder_of(model))[0]
    with pytest.raises(ValueError, match=r"chunk=8: .* computes statistics over all rows") as error:
        Eviction(model, SnapKV(window=4), chunk=8)
    assert first in str(error.value)
    assert model.config._attn_implementation == "sdpa"


def test_rows_with_scales_of_their_own_run_along_and_in_chunks() -> None:
    model = with_maps(PerRow)
    assert modules_over_rows(decoder_of(model)) == []
    lkv = attached(model, chunk=8)
    assert lkv.runner.takes_rows_along
    with torch.no_grad():
        expected = model(IDS).logits[:, -1]
    torch.testing.assert_close(lkv.prefill(IDS, budget=60).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_plain_models_have_no_such_module(kind: str) -> None:
    state = torch.random.get_rng_state()
    for dtype in (torch.float32, torch.bfloat16):
        assert modules_over_rows(decoder_of(tiny(kind).to(dtype))) == []
    assert modules_over_rows(decoder_of(tiny(kind).to("meta"))) == []
    del state


class Linear8bitLt(nn.Linear):
    """By name: bitsandbytes splits off the columns that hold an outlier in any row."""

    def __init__(self, threshold: float) -> None:
        super().__init__(16, 16)
        self.state = type("State", (), {"threshold": threshold})()


def test_columns_that_are_split_off_by_outliers() -> None:
    decoder = nn.Sequential(Linear8bitLt(6.0))
    assert modules_over_rows(decoder) == ["0 (Linear8bitLt)"]
    assert modules_over_rows(nn.Sequential(Linear8bitLt(0.0))) == []
