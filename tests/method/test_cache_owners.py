"""A cache knows whose it is, a model whom it is attached to; neither is changed by an error."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.eviction_model import attached, kept_heads, modules_of, text, tiny
from transformers import ContinuousBatchingConfig

from lookaheadkv_kernels.integrations.transformers import EvictableCache, Eviction, LookaheadKV
from lookaheadkv_kernels.policies import SnapKV, make_policy

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = text(30)
TOKEN = IDS[:, :1]


def cache_of(lkv: Any) -> str:
    return str(lkv.runner._cache_argument)


def uses(lkv: Any, cache: Any) -> list[Callable[[], Any]]:
    """All ways to go on from a cache."""
    name = cache_of(lkv)
    model = lkv.model

    def in_a_block(ids: torch.Tensor) -> Any:
        with lkv.evicting(8):
            return model(input_ids=ids, logits_to_keep=1, **{name: cache})

    def generate_in_a_block() -> Any:
        with lkv.evicting(8):
            return model.generate(torch.cat([IDS, IDS], dim=1), max_new_tokens=2, **{name: cache})

    return [
        lambda: lkv.prefill(IDS, budget=8, cache=cache),
        lambda: lkv.generate(torch.cat([IDS, IDS], 1), budget=8, max_new_tokens=2, **{name: cache}),
        lambda: lkv.generate(IDS, budget=8, max_new_tokens=2, **{name: cache}),
        generate_in_a_block,
        lambda: in_a_block(IDS),
        lambda: in_a_block(TOKEN),
        lambda: model(input_ids=TOKEN, **{name: cache}),
        lambda: model.get_decoder()(input_ids=TOKEN, **{name: cache}),
        lambda: model.generate(torch.cat([IDS, TOKEN], 1), max_new_tokens=2, **{name: cache}),
    ]


OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "fewer layers": (lambda: tiny(num_hidden_layers=2), r"num_layers=2 \(the model has 3\)"),
    "more layers": (lambda: tiny(num_hidden_layers=4), r"num_layers=4 \(the model has 3\)"),
    "other heads": (lambda: tiny(kv_heads=3), r"num_kv_heads=3 \(the model has 2\)"),
    "other dimensions": (lambda: tiny(head_dim=16), r"head_dim=16 \(the model has 8\)"),
    "another dtype": (lambda: tiny().to(torch.bfloat16), "dtype=torch.bfloat16 "),
    "another kind": (lambda: tiny("qwen2"), r"kind=Qwen2Model \(the model has LlamaModel\)"),
    "the same sizes": (tiny, "another LlamaModel of the same sizes"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_cache_of_another_model_is_refused_by_what_differs(other: str) -> None:
    make, message = OTHERS[other]
    lkv = attached(tiny())
    # A model that is still there, or is gone, or whose cache was copied.
    foreign = attached(make())
    caches = [foreign.prefill(IDS, budget=8)]
    caches += [caches[0].fork(), copy.deepcopy(caches[0])]
    caches += [attached(make()).prefill(IDS, budget=8)]
    gc.collect()
    for cache in caches:
        kept = kept_heads(cache)
        for use in uses(lkv, cache):
            with pytest.raises(ValueError, match=f"the cache is of another model: .*{message}"):
                use()
        assert cache.get_seq_length() == 30 and kept_heads(cache) == kept
    assert lkv.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["laq", "adakv", "full", "streaming_llm"])
def test_caches_of_all_policies_know_their_model(name: str) -> None:
    options = {"laq": {"draft_tokens": 2, "window": 2, "draft_window": 4}, "adakv": {"window": 4}}
    cache = Eviction(tiny(), make_policy(name, **options.get(name, {}))).prefill(IDS, budget=8)
    with pytest.raises(ValueError, match="another LlamaModel of the same sizes"):
        attached(tiny()).model(input_ids=TOKEN, **{cache_of(attached(tiny())): cache})


def test_a_model_that_changed_since() -> None:
    lkv = attached(tiny())
    cache = lkv.prefill(IDS, budget=8)
    lkv.model.to(torch.bfloat16)
    for use in uses(lkv, cache):
        with pytest.raises(ValueError, match=r"no longer fits .* dtype=torch.float32 \(the model"):
            use()


def test_a_cache_from_a_file_is_taken_by_a_model_of_its_sizes() -> None:
    lkv = attached(tiny())
    cache = lkv.prefill(IDS, budget=8)
    file = io.BytesIO()
    torch.save(cache, file)
    name = cache_of(lkv)
    expected = lkv.model(input_ids=TOKEN, **{name: cache}).logits

    def loaded() -> Any:
        file.seek(0)
        return torch.load(file, weights_only=False)

    assert attached(tiny()).model(input_ids=TOKEN, **{name: loaded()}).logits.equal(expected)
    with pytest.raises(ValueError, match="num_layers=3"):
        attached(tiny(num_hidden_layers=2)).model(input_ids=TOKEN, **{name: loaded()})
    # And then it is that model's.
    cache = loaded()
    attached(tiny()).prefill(IDS, budget=8, cache=cache)
    with pytest.raises(ValueError, match="another LlamaModel"):
        lkv.prefill(IDS, budget=8, cache=cache)


def test_a_cache_without_an_owner_is_looked_at() -> None:
    """Made by hand, as a user's own code may."""
    lkv = attached(tiny())
    for heads, dim, layers in ((3, 8, 3), (2, 16, 3), (2, 8, 2), (2, 8, 4)):
        cache = EvictableCache()
        for index in range(layers):
            cache.update(torch.ones(1, heads, 5, dim), torch.ones(1, heads, 5, dim), index)
            cache._pending = None
        with pytest.raises(ValueError, match=f"of another model: it has {layers} layers"):
            lkv.prefill(IDS, budget=8, cache=cache)


def test_rows_of_a_batch_and_of_a_cache() -> None:
    lkv = attached(tiny())
    cache = lkv.prefill(IDS, budget=8)
    with pytest.raises(ValueError, match="input_ids has 2 rows, the cache 1"):
        lkv.model(input_ids=TOKEN.expand(2, 1), **{cache_of(lkv): cache})
    assert [layer.stored_length for layer in cache.layers] == [8, 8, 8]


def test_the_logits_go_with_the_rows() -> None:
    lkv = attached(tiny())
    cache = lkv.prefill(torch.cat([IDS, text(30, 1)]), budget=8)
    first, second = cache.logits
    cache.batch_repeat_interleave(2)
    assert cache.logits.equal(torch.stack([first, first, second, second]))
    cache.batch_select_indices(torch.tensor([3, 0]))
    assert cache.logits.equal(torch.stack([second, first]))
    cache.reorder_cache(torch.tensor([1, 1]))
    assert cache.logits.equal(torch.stack([first, first]))


@pytest.mark.parametrize("first_out", [0, 1])
def test_two_evictions_of_one_model(first_out: int) -> None:
    model = tiny()
    pair = [attached(model), Eviction(model, SnapKV(window=4))]
    expected = [one.generate(IDS, budget=8, max_new_tokens=4, do_sample=False) for one in pair]
    caches = [one.prefill(IDS, budget=8) for one in pair]
    out, stays = pair[first_out], pair[1 - first_out]
    out.detach()
    out.detach()
    for call in (
        lambda: out.prefill(IDS, budget=8),
        lambda: out.generate(IDS, budget=8),
        lambda: out.evicting(8).__enter__(),
    ):
        with pytest.raises(RuntimeError, match=f"this {type(out).__name__} was detached"):
            call()
    again = stays.generate(IDS, budget=8, max_new_tokens=4, do_sample=False)
    assert again.equal(expected[1 - first_out])
    for cache in caches:
        model(input_ids=TOKEN, **{cache_of(stays): cache})
    stays.detach()
    with pytest.raises(RuntimeError, match="detached"):
        model(input_ids=TOKEN, **{cache_of(stays): caches[0]})
    decoder = model.get_decoder()
    assert not decoder._forward_hooks and not decoder._forward_pre_hooks
    # One that is gone keeps nothing attached.
    attached(model)
    last = attached(model)
    gc.collect()
    last.detach()
    assert not decoder._forward_pre_hooks


def test_a_copy_of_an_attached_model_is_a_model_of_its_own() -> None:
    lkv = attached(tiny())
    expected = lkv.generate(IDS, budget=8, max_new_tokens=4, do_sample=False)
    model = copy.deepcopy(lkv.model)
    cache = lkv.prefill(IDS, budget=8)
    with pytest.raises(ValueError, match="another LlamaModel"):
        model(input_ids=TOKEN, **{cache_of(lkv): cache})
    other = LookaheadKV(model, modules_of(model))
    lkv.detach()
    assert other.generate(IDS, budget=8, max_new_tokens=4, do_sample=False).equal(expected)
    other.detach()
    assert not model.get_decoder()._forward_pre_hooks


def test_an_attached_model_gives_attention_weights_as_before() -> None:
    model = tiny()
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    expected = model(IDS).attentions
    model.config.output_attentions = False
    lkv = attached(model)
    lkv.prefill(IDS, budget=8)
    assert model(IDS).attentions is None
    model.config.output_attentions = True
    assert all(a.equal(b) for a, b in zip(model(IDS).attentions, expected, strict=True))
    with lkv.evicting(8), pytest.raises(ValueError, match=r"config\.output_attentions=True"):
        model(input_ids=IDS, logits_to_keep=1)
    model.config.output_attentions = False
    assert len(model(IDS, output_attentions=True).attentions) == 3
    sdpa = attached(tiny()).model
    with pytest.raises(ValueError, match="set to sdpa"):  # transformers' own words
        sdpa.config.output_attentions = True


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_attached_model_generates_in_batches_as_before(attention: str) -> None:
    """transformers' continuous batching looks at the attention's name; it runs on this CPU, too."""
    model = tiny(eos_token_id=2)
    model.set_attn_implementation(attention)
    prompts = [IDS[0].tolist(), text(9)[0].tolist()]

    small = ContinuousBatchingConfig(num_blocks=8, page_size=16, max_batch_tokens=64)

    def answers() -> Any:
        out = model.generate_batch(
            inputs=prompts, max_new_tokens=3, continuous_batching_config=small
        )
        return [answer.generated_tokens for answer in out.values()]

    before = answers()
    assert [len(answer) for answer in before] == [3, 3]
    lkv = attached(model)
    lkv.prefill(IDS, budget=8)
    assert answers() == before
    assert model.config._attn_implementation == attention
    assert kept_heads(lkv.prefill(IDS, budget=8))


def test_the_name_of_the_attention_is_the_models_own_but_in_a_pass() -> None:
    model = tiny()
    lkv = attached(model)
    names = []
    model.model.layers[1].register_forward_pre_hook(
        lambda *a: names.append(model.config._attn_implementation)
    )
    lkv.generate(IDS, budget=8, max_new_tokens=2)
    assert names == ["lookaheadkv_sdpa"] * 2
    model(IDS)
    assert names[2:] == ["sdpa"]
    model.set_attn_implementation("eager")  # a later choice is kept
    lkv.generate(IDS, budget=8, max_new_tokens=2)
    lkv.detach()
    assert names[3:] == ["lookaheadkv_eager"] * 2
    assert model.config._attn_implementation == "eager"
