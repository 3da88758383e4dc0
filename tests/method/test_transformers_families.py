"""The decoder classes that are used most: right, or refused with the reason when attached."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.eviction_model import text
from support.families import FAMILIES, REFUSED, SUPPORTED, family
from torch import Tensor

from lookaheadkv_kernels.integrations.transformers import Eviction
from lookaheadkv_kernels.integrations.transformers.compat import cache_argument
from lookaheadkv_kernels.policies import StreamingLLM

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTH, KEPT = 20, 8
SINKS = 4
# Every keyword that an attention class of these families passes to the interface.
PASSED = {
    "dropout",
    "is_causal",
    "position_ids",
    "s_aux",
    "scaling",
    "sliding_window",
    "softcap",
}


def decoded(model: Any, cache: Any, name: str, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Logits of forced tokens; ``mask`` [1, LENGTH] hides entries of a plain cache."""
    rows = []
    for step, token in enumerate(tokens[0].tolist()):
        more = (
            {}
            if mask is None
            else {"attention_mask": torch.cat([mask, mask.new_ones(1, step + 1)], 1)}
        )
        with torch.no_grad():
            out = model(
                torch.tensor([[token]]),
                position_ids=torch.tensor([[LENGTH + step]]),
                **{name: cache},
                use_cache=True,
                **more,
            )
        rows.append(out.logits[0, -1])
    return torch.stack(rows)


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_cut_cache_decodes_as_the_plain_model_that_hides_the_same_entries(name: str) -> None:
    model, ids, answer = family(name), text(LENGTH), text(3, 5)
    argument = cache_argument(model)
    with torch.no_grad():
        out = model(ids, use_cache=True)
    mask = torch.zeros(1, LENGTH, dtype=torch.long)
    mask[:, :SINKS] = mask[:, LENGTH - (KEPT - SINKS) :] = 1
    expected = decoded(model, out[argument], argument, answer, mask)
    for chunk in (None, 7):
        lkv = Eviction(model, StreamingLLM(num_sink=SINKS), chunk=chunk)
        cache = lkv.prefill(ids, budget=KEPT)
        assert [layer.stored_length for layer in cache.layers] == [KEPT] * 2
        torch.testing.assert_close(cache.logits, out.logits[:, -1], rtol=1e-4, atol=1e-5)
        got = decoded(model, cache, argument, answer, None)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_when_attached(name: str) -> None:
    model = family(name)
    before, keys = model.config._attn_implementation, set(model.__dict__)
    with pytest.raises(ValueError, match=FAMILIES[name][2]) as error:
        Eviction(model, StreamingLLM())
    assert type(model).__name__ in str(error.value)
    assert model.config._attn_implementation == before
    assert set(model.__dict__) == keys


def test_what_these_classes_pass_to_the_attention_interface() -> None:
    root = Path(transformers.__file__).parent / "models"
    found = set()
    for name, (model, _, _) in FAMILIES.items():
        file = root / getattr(transformers, model).__module__.split(".")[2]
        source = next(file.glob("modeling_*.py"))
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "attention_interface":
                assert len(node.args) <= 5, name
                found |= {keyword.arg for keyword in node.keywords if keyword.arg is not None}
    assert found - {"attention_mask"} == PASSED
