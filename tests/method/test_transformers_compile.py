"""Compiled models: eviction computes what it does without, whatever was traced before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.eviction_model import attached, kept_heads, text, tiny
from transformers import DynamicCache

from lookaheadkv_kernels.integrations.transformers import Eviction
from lookaheadkv_kernels.integrations.transformers.compat import cache_argument
from lookaheadkv_kernels.integrations.transformers.compiled import as_written, uncompiled
from lookaheadkv_kernels.policies import AdaKV, FullCache, SnapKV

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
OPTIONS = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def in_place(model: Any, **options: Any) -> None:
    model.compile(backend="eager", **options)


def by_layers(model: Any, **options: Any) -> None:
    for layer in model.model.layers:
        layer.compile(backend="eager", **options)


def its_forward(model: Any, **options: Any) -> None:
    model.forward = torch.compile(model.forward, backend="eager", **options)


def same(model: Any, plain: Any, lengths: tuple[int, ...]) -> None:
    name = cache_argument(plain)
    policies = [SnapKV(window=8), AdaKV(window=8)]
    pairs = [(attached(model), attached(plain))]
    pairs += [(Eviction(model, policy), Eviction(plain, policy)) for policy in policies]
    for length in lengths:
        ids = text(length)
        for ours, theirs in pairs:
            cache, expected = (lkv.prefill(ids, budget=12) for lkv in (ours, theirs))
            assert kept_heads(cache) == kept_heads(expected)
            torch.testing.assert_close(cache.logits, expected.logits, rtol=1e-4, atol=1e-5)
            token = cache.logits.argmax(-1, keepdim=True)
            for step in range(3):
                place = torch.tensor([[length + step]])
                with torch.no_grad():
                    got, want = (
                        m(input_ids=token, position_ids=place, **{name: c}).logits
                        for m, c in ((model, cache), (plain, expected))
                    )
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
                token = got[:, -1].argmax(-1, keepdim=True)
            written = ours.generate(ids, budget=12, **OPTIONS)
            assert written.equal(theirs.generate(ids, budget=12, **OPTIONS))
        with torch.no_grad():
            for options in ({"use_cache": False}, {name: DynamicCache()}):
                out = model(ids, **options).logits
                torch.testing.assert_close(out, plain(ids).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_model_compiled_in_place_over_growing_sizes() -> None:
    """From the second step on sizes are symbolic; a trace without LoRA comes first."""
    model, plain = (tiny(num_hidden_layers=1) for _ in range(2))
    in_place(model)
    pairs = ((model, attached(model)), (plain, attached(plain)))
    name, results = cache_argument(plain), []
    for m, lkv in pairs:
        full = Eviction(m, FullCache()).prefill(text(30), budget=1)
        cut = lkv.prefill(text(41), budget=12)
        rows = [full.logits, cut.logits]
        for step in range(3):
            token, place = text(1, step), torch.tensor([[41 + step]])
            rows.append(m(input_ids=token, position_ids=place, **{name: cut}).logits[0])
        results.append((kept_heads(cut), torch.cat(rows)))
    assert results[0][0] == results[1][0]
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("way", [in_place, by_layers, its_forward])
def test_other_ways_to_compile(way: Callable[..., None], dynamic: bool | None) -> None:
    model, plain = (tiny(num_hidden_layers=2) for _ in range(2))
    way(model, dynamic=dynamic)
    same(model, plain, (30, 41, 57))


@pytest.mark.slow
@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_compiled_models_whose_angles_depend_on_length(rope: str) -> None:
    own = {"rope_type": rope, "rope_theta": 1000.0, "factor": 2.0}
    if rope == "longrope":
        own |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
        own |= {"original_max_position_embeddings": 36}
    options = {"num_hidden_layers": 1, "max_position_embeddings": 36, "rope_parameters": own}
    model, plain = (tiny(**options) for _ in range(2))
    in_place(model)
    same(model, plain, (30, 35, 41))


def test_blocks_of_several_threads_leave_the_compiler_as_it_was() -> None:
    calls = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append("traced")
        return graph.forward

    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    compiled = torch.compile(double, backend=backend)
    entered, left = threading.Barrier(2), threading.Event()

    def work() -> None:
        with uncompiled():
            entered.wait(10)
            left.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    with uncompiled():  # entered before the other's end, left before it
        entered.wait(10)
    compiled(torch.ones(2))
    assert calls == []
    left.set()
    thread.join()
    with pytest.raises(ZeroDivisionError), uncompiled():
        raise ZeroDivisionError
    compiled(torch.ones(2))
    assert calls == ["traced"]


def test_what_runs_as_written_is_called_by_a_trace() -> None:
    seen = []

    @as_written
    def note(x: torch.Tensor) -> torch.Tensor:
        seen.append(int(x.sum()))  # a value, which a trace does not have
        return x + 1

    def twice(x: torch.Tensor) -> torch.Tensor:
        return note(x * 2) * 3

    compiled = torch.compile(twice, backend="eager")
    for value in (1.0, 2.0):
        assert compiled(torch.full((2,), value)).equal(twice(torch.full((2,), value)))
    assert seen == [4, 4, 8, 8]
