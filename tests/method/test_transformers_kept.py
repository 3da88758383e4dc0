"""What the integration keeps, and what the model computes from it, against a slow dense run."""

from __future__ import annotations

import copy

import pytest
import torch
from support.eviction_model import (
    SlowLookahead,
    attached,
    continue_greedily,
    kept_heads,
    modules_of,
    text,
    tiny,
)
from support.helpers import assert_within_twice_eager
from support.policy_model import Cut, DenseModel

from lookaheadkv_kernels.integrations.transformers import Eviction, LookaheadKV
from lookaheadkv_kernels.policies import FullCache, SnapKV

pytestmark = pytest.mark.usefixtures("one_thread")
WAYS = [
    {},
    {"mode": "extend"},
    {"chunk": 17},
    {"chunk": 1},
    {"chunk": 100},
    {"mode": "extend", "chunk": 7},
]
HEADS = [(6, 2), (4, 4), (4, 1), (8, 2)]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_every_way_keeps_what_the_slow_run_keeps(kind: str) -> None:
    model = tiny(kind)
    ids = text(101)
    expected = SlowLookahead(model, modules_of(model)).kept(ids[0].tolist(), 20)
    for way in WAYS:
        cache = attached(model, **way).prefill(ids, budget=20)
        assert kept_heads(cache) == expected, way
        assert [layer.stored_length for layer in cache.layers] == [20] * 3
        assert cache.get_seq_length() == 101


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_head_ratios(heads: int, kv_heads: int) -> None:
    model = tiny(heads=heads, kv_heads=kv_heads)
    ids = text(60)
    cache = attached(model).prefill(ids, budget=9)
    expected = SlowLookahead(model, modules_of(model)).kept(ids[0].tolist(), 9)
    assert kept_heads(cache) == expected


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_decoding_is_the_dense_model_that_cannot_see_what_was_evicted(kind: str) -> None:
    model = tiny(kind)
    lkv = attached(model)
    ids = text(80)
    cache = lkv.prefill(ids, budget=[7, 12, 30])
    cuts = [Cut(80, kept_heads(cache))]
    dense = DenseModel(model)
    torch.testing.assert_close(cache.logits[0], dense.run(ids[0].tolist()).logits[-1])
    tokens = ids[0].tolist()
    for token in [5, 11, 90, 44]:
        tokens.append(token)
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([[token]]), **{lkv.runner._cache_argument: cache}
            ).logits
        expected = dense.run(tokens, cuts).logits[-1]
        torch.testing.assert_close(logits[0, -1], expected, rtol=1e-4, atol=1e-4)
    assert [layer.positions()[0, 0, -4:].tolist() for layer in cache.layers] == [
        [80, 81, 82, 83]
    ] * 3


def test_several_new_tokens_at_once_see_the_kept_entries_and_each_other() -> None:
    model = tiny()
    lkv = attached(model)
    ids = text(50)
    cache = lkv.prefill(ids, budget=10)
    cuts = [Cut(50, kept_heads(cache))]
    more = [5, 6, 7, 8]
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor([more]), **{lkv.runner._cache_argument: cache}
        ).logits[0]
    expected = DenseModel(model).run([*ids[0].tolist(), *more], cuts).logits[-4:]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("budget", [64, 1000, 1.0])
def test_a_budget_for_everything_is_plain_generation(kind: str, budget: float) -> None:
    model = tiny(kind)
    ids = text(64)
    plain = model.generate(ids, max_new_tokens=12, do_sample=False)
    for way in ({}, {"mode": "extend"}, {"chunk": 10}):
        out = attached(model, **way).generate(
            ids, budget=budget, max_new_tokens=12, do_sample=False
        )
        assert out.tolist() == plain.tolist()


def test_short_prompts() -> None:
    model = tiny()
    lkv = attached(model)
    for length in (1, 2, 7):
        ids = text(length)
        plain = model.generate(ids, max_new_tokens=6, do_sample=False)
        assert lkv.generate(ids, budget=8, max_new_tokens=6, do_sample=False).equal(plain)
    cache = lkv.prefill(text(7), budget=1)
    assert [layer.stored_length for layer in cache.layers] == [1] * 3


def test_positions_of_ones_own() -> None:
    model = tiny()
    ids, positions = text(60), torch.arange(60)[None] * 3 + 40
    caches = [attached(model, **way).prefill(ids, budget=9, position_ids=positions) for way in WAYS]
    assert all(kept_heads(cache) == kept_heads(caches[0]) for cache in caches)
    assert kept_heads(caches[0]) != kept_heads(attached(model).prefill(ids, budget=9))


def test_ratios_round_up_and_layers_may_differ() -> None:
    lkv = attached(tiny())
    cache = lkv.prefill(text(41), budget=0.1)
    assert [layer.stored_length for layer in cache.layers] == [5] * 3
    cache = lkv.prefill(text(41), budget=[0.5, 0.01, 1.0])
    assert [layer.stored_length for layer in cache.layers] == [21, 1, 41]
    cache = lkv.prefill(text(41), budget=(3, 41, 99))
    assert [layer.stored_length for layer in cache.layers] == [3, 41, 41]


@pytest.mark.parametrize("way", [{}, {"mode": "extend"}, {"chunk": 9}])
def test_later_turns_are_scored_and_cut_too(way: dict) -> None:
    model = tiny()
    lkv = attached(model, **way)
    slow, dense = SlowLookahead(model, modules_of(model)), DenseModel(model)
    ids = text(50)
    cache = lkv.prefill(ids, budget=12)
    tokens = ids[0].tolist()
    cuts = [Cut(50, slow.kept(tokens, 12))]
    assert kept_heads(cache) == cuts[0].kept
    answer = continue_greedily(lkv, cache, ids, 5)[0]
    assert answer == dense.greedy(tokens, 1) + dense.greedy([*tokens, answer[0]], 4, cuts)
    for turn, budget in enumerate((12, 15, 6)):
        # The last token of an answer is not in the cache yet.
        new = [answer[-1], *text(20, seed=turn + 1)[0].tolist()]
        tokens += answer[:-1] + new
        cache = lkv.prefill(torch.tensor([new]), budget=budget, cache=cache)
        kept = slow.kept(tokens, budget, cuts)
        assert kept_heads(cache) == kept
        torch.testing.assert_close(
            cache.logits[0], dense.run(tokens, cuts).logits[-1], rtol=1e-4, atol=1e-4
        )
        cuts.append(Cut(len(tokens), kept))
        answer = continue_greedily(lkv, cache, ids, 4)[0]
        assert answer[1:] == dense.greedy([*tokens, answer[0]], 3, cuts)


def test_a_ratio_in_a_later_turn_counts_the_whole_text() -> None:
    lkv = attached(tiny())
    cache = lkv.prefill(text(40), budget=10)
    cache = lkv.prefill(text(60, seed=1), budget=0.25, cache=cache)
    assert [layer.stored_length for layer in cache.layers] == [25] * 3


def test_turns_by_generate_are_turns_by_prefill() -> None:
    model = tiny()
    lkv = attached(model)
    ids = text(50)
    first = lkv.generate(
        ids, budget=12, max_new_tokens=5, do_sample=False, return_dict_in_generate=True
    )
    cache = first[lkv.runner._cache_argument]
    conversation = torch.cat([first.sequences, text(20, seed=1)], dim=1)
    by_hand = lkv.prefill(ids, budget=12)
    continue_greedily(lkv, by_hand, ids, 5)
    by_hand = lkv.prefill(conversation[:, 54:], budget=15, cache=by_hand)
    copies = [cache.fork(), cache.fork()]
    second = lkv.generate(
        conversation,
        budget=15,
        max_new_tokens=4,
        do_sample=False,
        **{lkv.runner._cache_argument: copies[0]},
    )
    assert kept_heads(copies[0]) == kept_heads(by_hand)
    with lkv.evicting(15):
        again = model.generate(
            conversation,
            max_new_tokens=4,
            do_sample=False,
            **{lkv.runner._cache_argument: copies[1]},
        )
    assert again.equal(second)
    assert second[:, 75 - 1 :].tolist()[0][1:] == continue_greedily(lkv, by_hand, ids, 4)[0]


def test_a_cache_can_be_forked_copied_and_reset() -> None:
    lkv = attached(tiny())
    ids = text(40)
    cache = lkv.prefill(ids, budget=10)
    twins = [cache.fork(), copy.deepcopy(cache)]
    first = continue_greedily(lkv, cache, ids, 6)
    for twin in twins:
        assert continue_greedily(lkv, twin, ids, 6) == first
    cache.reset()
    assert cache.get_seq_length() == 0
    assert lkv.prefill(ids, budget=10, cache=cache) is cache
    assert continue_greedily(lkv, cache, ids, 6) == first


def test_other_policies_on_the_same_model() -> None:
    model = tiny()
    ids = text(60)
    plain = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert (
        Eviction(model, FullCache())
        .generate(ids, budget=1, max_new_tokens=8, do_sample=False)
        .equal(plain)
    )
    caches = [
        Eviction(model, SnapKV(window=8), chunk=chunk).prefill(ids, budget=20)
        for chunk in (None, 7, 30)
    ]
    assert kept_heads(caches[0]) == kept_heads(caches[1]) == kept_heads(caches[2])
    for heads in kept_heads(caches[0]):
        assert all(head[-8:] == list(range(52, 60)) for head in heads)


def test_embeddings_in_place_of_ids() -> None:
    model = tiny()
    lkv = attached(model)
    ids = text(50)
    embeds = model.get_input_embeddings()(ids)
    assert kept_heads(lkv.prefill(inputs_embeds=embeds, budget=10)) == kept_heads(
        lkv.prefill(ids, budget=10)
    )
    by_ids = lkv.generate(ids, budget=10, max_new_tokens=6, do_sample=False)
    out = lkv.generate(inputs_embeds=embeds, budget=10, max_new_tokens=6, do_sample=False)
    assert out.equal(by_ids[:, 50:])
    with lkv.evicting(10):
        assert model.generate(inputs_embeds=embeds, max_new_tokens=6, do_sample=False).equal(out)


@pytest.mark.parametrize("mode", ["appended", "extend"])
def test_modules_in_another_dtype_than_the_model(mode: str) -> None:
    model = tiny().to(torch.bfloat16)
    modules = modules_of(model)
    lkv = LookaheadKV(model, modules, mode=mode)
    assert modules.embeddings.dtype == torch.float32  # the caller's stay as they are
    ids = text(60)
    assert lkv.prefill(ids, budget=10).layers[0].keys.dtype == torch.bfloat16
    # With room for all entries nothing is evicted, so the logits are those of the plain model up to
    # rounding in bfloat16: the attention kernels are not PyTorch's, and tokens may differ.
    said = lkv.generate(ids, budget=60, max_new_tokens=8, do_sample=False)
    cache = lkv.prefill(ids, budget=60)
    logits = [cache.logits]
    for position in range(60, 67):
        token, places = said[:, position, None], torch.tensor([[position]])
        with torch.no_grad():
            cached = {lkv.runner._cache_argument: cache}
            out = model(input_ids=token, position_ids=places, **cached)
        logits.append(out.logits[:, -1])
    ours = torch.stack(logits, dim=1)
    assert ours.argmax(dim=-1).equal(said[:, 60:])  # of one implementation: to the bit
    with torch.no_grad():
        plain = tiny().to(torch.bfloat16)(said).logits[:, 59:-1]
        exact = tiny().to(torch.bfloat16).double()(said).logits[:, 59:-1]
    assert_within_twice_eager(ours, plain, exact)
