"""Eviction leaves the model alone, bit for bit, with hooks and in threads, and frees its memory."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import pytest
import torch
from support.eviction_model import attached, kept_heads, modules_of, text, tiny
from transformers import StaticCache

from lookaheadkv_kernels.integrations.transformers import EvictableCache, Eviction, LookaheadKV
from lookaheadkv_kernels.policies import FullCache

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = text(30)


def observed(model: Any) -> list[Any]:
    """Everything a user might compare before and after."""
    padded = torch.cat([IDS, torch.cat([torch.zeros_like(IDS[:, :9]), IDS[:, 9:]], dim=1)])
    mask = (padded != 0).long()
    options = {"max_new_tokens": 6, "do_sample": False}
    with torch.no_grad():
        return [
            model(padded, attention_mask=mask).logits,
            model(padded, attention_mask=mask, use_cache=False).logits,
            model.generate(padded, attention_mask=mask, **options),
            model.generate(IDS, num_beams=2, **options),
            model.generate(IDS, use_cache=False, **options),
            model.generate(IDS, prefill_chunk_size=7, **options),
            model.generate(IDS, prompt_lookup_num_tokens=3, **options),
            model.generate(
                padded,
                attention_mask=mask,
                cache_implementation="static",
                **options,
            ),
            model(IDS, labels=IDS).loss,
        ]


def same(a: list[Any], b: list[Any]) -> bool:
    return all(x.equal(y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attached_and_detached_models_compute_what_they_did(attention: str) -> None:
    model = tiny()
    model.set_attn_implementation(attention)
    before, state = observed(model), {k: v.clone() for k, v in model.state_dict().items()}
    names = set(model.__dict__)
    lkv = attached(model)
    assert same(observed(model), before)
    lkv.generate(IDS, budget=8, max_new_tokens=3)
    assert same(observed(model), before)
    with pytest.raises(ZeroDivisionError), lkv.evicting(8):
        model.generate(IDS, max_new_tokens=3)
        raise ZeroDivisionError
    assert same(observed(model), before)
    lkv.detach()
    assert same(observed(model), before)
    assert model.config._attn_implementation == attention
    assert set(model.__dict__) == names
    assert all(not module._forward_hooks for module in model.modules())
    assert all(v.equal(state[k]) for k, v in model.state_dict().items())


def test_an_error_within_the_forward_takes_every_hook_away() -> None:
    model = tiny()
    before = observed(model)
    lkv = attached(model)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    handle = model.model.layers[1].register_forward_pre_hook(lambda *a: 1 / 0)
    for call in (
        lkv.prefill,
        lambda ids, budget: lkv.generate(ids, budget=budget, max_new_tokens=2),
    ):
        with pytest.raises(ZeroDivisionError):
            call(IDS, budget=8)
        assert model.config._attn_implementation == "sdpa"
    handle.remove()
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert same(observed(model), before)
    assert lkv.prefill(IDS, budget=8).layers[2].stored_length == 8


def test_gradients_of_an_attached_model() -> None:
    model = tiny()
    flags = [parameter.requires_grad for parameter in model.parameters()]

    def gradients() -> list[Any]:
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    before = gradients()
    modules = modules_of(model).requires_grad_(True)
    lkv = LookaheadKV(model, modules)
    cache = lkv.prefill(IDS, budget=8)
    assert not cache.logits.requires_grad
    assert not cache.layers[0].keys.requires_grad
    assert same(gradients(), before)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(p.requires_grad and p.grad is None for p in modules.parameters())


def test_a_static_cache_of_an_attached_model_is_its_own() -> None:
    model = tiny()
    lkv = attached(model)
    cache = StaticCache(config=model.config, max_cache_len=40)
    with torch.no_grad():
        out = model(IDS, **{lkv.runner._cache_argument: cache}).logits
        torch.testing.assert_close(out, model(IDS).logits)


def test_two_models_interleaved_and_in_threads() -> None:
    pair = [attached(tiny()), attached(tiny("qwen3"))]
    options = {"budget": 8, "max_new_tokens": 6, "do_sample": False}
    expected = [lkv.generate(IDS, **options) for lkv in pair]
    with pair[0].evicting(8), pair[1].evicting(8):
        for lkv, tokens in zip(pair, expected, strict=True):
            assert lkv.model.generate(IDS, max_new_tokens=6, do_sample=False).equal(tokens)
    outs: list[list[Any]] = [[], []]

    def work(number: int) -> None:
        for _ in range(8):
            outs[number].append(pair[number].generate(IDS, **options))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        assert len(outs[number]) == 8
        assert all(out.equal(expected[number]) for out in outs[number])


def test_decoding_in_one_thread_while_another_prefills_the_same_model() -> None:
    model = tiny()
    lkv = attached(model)
    plain = model.generate(IDS, max_new_tokens=6, do_sample=False)
    kept = kept_heads(lkv.prefill(IDS, budget=8))
    stop = threading.Event()
    seen = []

    def work() -> None:
        while not stop.is_set():
            seen.append(kept_heads(lkv.prefill(IDS, budget=8)) == kept)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(10):
            assert model.generate(IDS, max_new_tokens=6, do_sample=False).equal(plain)
    finally:
        stop.set()
        thread.join()
    assert seen and all(seen)


def test_blocks_of_two_threads_on_one_model_are_refused() -> None:
    lkv = attached(tiny())
    errors = []

    def work() -> None:
        try:
            lkv.generate(IDS, budget=8, max_new_tokens=2)
        except RuntimeError as error:
            errors.append(str(error))

    with lkv.evicting(8):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert "another thread" in errors[0]
    work()
    assert len(errors) == 1


def test_a_model_whose_forward_is_an_attribute() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    options = {"max_new_tokens": 6, "do_sample": False}
    expected = attached(tiny()).generate(IDS, budget=8, **options)
    model = tiny()
    hook = hooks.AlignDevicesHook(execution_device="cpu", io_same_device=True)
    for module in model.modules():
        hooks.add_hook_to_module(module, hook)
    own = model.__dict__["forward"]
    lkv = attached(model)
    assert lkv.generate(IDS, budget=8, **options).equal(expected)
    with lkv.evicting(8):
        assert model.generate(IDS, **options).equal(expected)
    assert model.__dict__["forward"] is own
    hooks.remove_hook_from_module(model, recurse=True)
    assert lkv.generate(IDS, budget=8, **options).equal(expected)


def test_saved_models_know_nothing_of_eviction(tmp_path: Any) -> None:
    model = tiny()
    attached(model)
    model.save_pretrained(tmp_path)
    assert "lookaheadkv" not in (tmp_path / "config.json").read_text()
    assert type(model).from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_evicted_memory_is_given_back() -> None:
    model = tiny()
    lkv = attached(model)
    refs: list[Any] = []
    own = EvictableCache.update

    def update(self: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        refs.extend(weakref.ref(tensor) for tensor in (key, value))
        return own(self, key, value, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EvictableCache, "update", update)
        cache = lkv.prefill(text(500), budget=8)
    assert [ref() for ref in refs] == [None] * 6
    for layer in cache.layers:
        for tensor in (layer.keys, layer.values):
            assert tensor.untyped_storage().nbytes() == 8 * 2 * 8 * 4  # entries, heads, dims, bytes


def test_peak_of_kv_memory() -> None:
    """Layer by layer: at no moment more than a tenth of the full cache, prompt 32 x the budget."""
    layers, length, budget = 16, 1024, 32
    model = tiny(num_hidden_layers=layers)
    lkv = attached(model)
    peak = 0
    own = EvictableCache.attend

    def attend(self: Any, *args: Any) -> Any:
        nonlocal peak
        seen = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for layer in self.layers
            for t in (layer.keys, layer.values)
        }
        peak = max(peak, sum(seen.values()))
        return own(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EvictableCache, "attend", attend)
        cache = lkv.prefill(text(length), budget=budget)
    full = Eviction(tiny(num_hidden_layers=layers), FullCache()).prefill(text(length), budget=1)
    assert peak > cache.nbytes()
    assert peak <= full.nbytes() / 10
