"""Every policy against its transcription in python_ref, through a whole prefill of a tiny Llama."""

from __future__ import annotations

import pytest
import torch
from lookaheadkv_kernels.python_ref import policies as ref
from support.policy_calls import (
    DRAFT,
    MORE,
    TRANSCRIBED,
    WINDOW,
    batch_of,
    decoded,
    dense,
    draft_model,
    kept_by,
    policy_of,
    target,
    text,
    transcribed,
)
from support.policy_model import Cut, tiny_llama

from lookaheadkv_kernels.integrations.transformers import Eviction
from lookaheadkv_kernels.policies import POLICY_NAMES, ScorePolicy, make_policy, scoring
from lookaheadkv_kernels.policies.budget import budget_of
from lookaheadkv_kernels.unmasked import unmasked_scores

pytestmark = pytest.mark.usefixtures("one_thread")

CHUNK = 17
LATER_TURNS = tuple(name for name in TRANSCRIBED if name not in ("speckv", "adakv"))


@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("name", TRANSCRIBED)
def test_kept_positions_and_what_follows(name, kv_heads):
    """Kept positions and logits, at budgets below, around and above the prompt's length."""
    model, reference = target(kv_heads), dense(kv_heads)
    for length, cap in ((70, WINDOW), (70, 20), (70, 48), (31, 30), (30, 30), (29, 30), (5, 30)):
        tokens = text(length)
        expected = transcribed(name, reference, tokens, cap)
        for chunk in (None, CHUNK) if cap == 20 else (None,):
            eviction = Eviction(model, policy_of(name), chunk=chunk)
            cache = eviction.prefill(torch.tensor([tokens]), budget=cap)
            assert kept_by(cache) == expected, (length, cap, chunk)
            assert cache.get_seq_length() == length
            whole = reference.run(tokens + MORE, [Cut(length, expected)]).logits
            torch.testing.assert_close(cache.logits[0], whole[length - 1], atol=1e-4, rtol=1e-4)
            more = decoded(model, cache, [MORE])[0]
            torch.testing.assert_close(more, whole[length:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", TRANSCRIBED)
def test_padded_rows_are_what_they_are_alone(name, side):
    """Also for rows shorter than the budget, and for budgets that differ between rows."""
    model, reference = target(2), dense(2)
    rows = [text(70), text(41), text(15)]
    ids, mask = batch_of(rows, side)
    for budget, chunk in ((20, None), (0.5, CHUNK)):
        caps = [budget_of(budget, 0, len(row)) for row in rows]
        if min(caps) < WINDOW:
            rows, caps, ids, mask = rows[:2], caps[:2], ids[:2], mask[:2]
        cache = Eviction(model, policy_of(name), chunk=chunk).prefill(ids, mask, budget=budget)
        more = decoded(model, cache, [MORE] * len(rows))
        for row, tokens in enumerate(rows):
            expected = transcribed(name, reference, tokens, caps[row])
            places = [*range(len(tokens), len(tokens) + len(MORE))]
            assert kept_by(cache, row) == [
                [kept + places for kept in heads] for heads in expected
            ], (budget, row)
            cuts = [Cut(len(tokens), expected)]
            whole = reference.run(tokens + MORE, cuts).logits[len(tokens) :]
            torch.testing.assert_close(more[row], whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("chunk", [None, CHUNK])
@pytest.mark.parametrize("name", LATER_TURNS)
def test_second_turn(name, chunk):
    """It chooses among what the first turn left and its own tokens, by its own rows."""
    model, reference = target(2), dense(2)
    first, second = text(50), text(30)
    eviction = Eviction(model, policy_of(name), chunk=chunk)
    cache = eviction.prefill(torch.tensor([first]), budget=24)
    cut = Cut(50, transcribed(name, reference, first, 24))
    again = eviction.prefill(torch.tensor([second]), budget=20, cache=cache)
    assert again is cache
    expected = transcribed(name, reference, first + second, 20, (cut,))
    assert kept_by(cache) == expected
    whole = reference.run(first + second + MORE, [cut, Cut(80, expected)]).logits
    torch.testing.assert_close(cache.logits[0], whole[79], atol=1e-4, rtol=1e-4)
    more = decoded(model, cache, [MORE])[0]
    torch.testing.assert_close(more, whole[80:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", LATER_TURNS)
def test_second_turn_of_a_padded_batch(name):
    """As the rows alone, or refused by the policy's name."""
    firsts, seconds = [text(50), text(18)], [text(20), text(33)]
    eviction = Eviction(target(2), policy_of(name))
    cache = eviction.prefill(*batch_of(firsts, "left"), budget=24)
    ids, mask = batch_of(seconds, "left")
    if name == "h2o":
        before = kept_by(cache)
        with pytest.raises(ValueError, match="'h2o' cannot score a padded batch in a later turn"):
            eviction.prefill(ids, mask, budget=20, cache=cache)
        assert kept_by(cache) == before
        return
    eviction.prefill(ids, mask, budget=20, cache=cache)
    more = decoded(target(2), cache, [MORE, MORE])
    for row in range(2):
        alone = eviction.prefill(torch.tensor([firsts[row]]), budget=24)
        eviction.prefill(torch.tensor([seconds[row]]), budget=20, cache=alone)
        expected = decoded(target(2), alone, [MORE])[0]
        assert kept_by(cache, row) == kept_by(alone)
        torch.testing.assert_close(more[row], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["speckv", "adakv"])
def test_later_turns_are_refused_before_anything_runs(name):
    eviction = Eviction(target(2), policy_of(name))
    ids = torch.tensor([text(40)])
    cache = eviction.prefill(ids, budget=20)
    before = kept_by(cache)
    with pytest.raises(ValueError, match=f"policy '{name}': later turns"):
        eviction.prefill(ids, budget=20, cache=cache)
    assert kept_by(cache) == before


def test_full_leaves_the_model_unchanged():
    model, reference = target(2), dense(2)
    tokens = text(40)
    cache = Eviction(model, make_policy("full")).prefill(torch.tensor([tokens]), budget=1)
    assert kept_by(cache) == [[list(range(40))] * 2] * 3
    more = decoded(model, cache, [MORE])[0]
    whole = reference.run(tokens + MORE).logits
    torch.testing.assert_close(more, whole[40:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("block", [1, 7, 128])
@pytest.mark.parametrize("rows, before", [(40, 0), (33, 9), (1, 20)])
def test_column_sums_of_all_rows(monkeypatch, rows, before, block):
    monkeypatch.setattr(scoring, "ROW_BLOCK", block)
    query, key = torch.randn(2, 6, rows, 16), torch.randn(2, 2, before + rows, 16)
    sums = scoring.causal_column_sums(query, key, 0.25)
    for row in range(2):
        expected = ref.head_scores(query[row], key[row], ref.causal(rows, before + rows))
        torch.testing.assert_close(sums[row].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows, keys", [(5, 60), (32, 40), (12, 12), (12, 7), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scores_without_a_triangle(rows, keys, dtype):
    query, key = torch.randn(2, 6, rows, 16, dtype=dtype), torch.randn(2, 2, keys, 16, dtype=dtype)
    scores = unmasked_scores(query, key, 0.25)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for row in range(2):
        visible = torch.ones(rows, keys, dtype=torch.bool)
        expected = ref.head_scores(query[row], key[row], visible) / rows
        torch.testing.assert_close(
            scores[row].double(), expected, atol=tolerance / keys, rtol=tolerance
        )


def test_pyramid_as_published_keeps_more_than_its_budget():
    policy = make_policy("pyramidkv")
    kept = [policy.layer_budget(128, layer, 32, 10_000) for layer in range(32)]
    assert sum(kept) / 32 == 142.5
    assert kept == [ref.pyramidkv_budget(layer, 32, 10_000, 128) for layer in range(32)]


@pytest.mark.parametrize("num_layers", [1, 2, 3, 28, 32])
def test_pyramid_with_an_exact_total(num_layers):
    policy = make_policy("pyramidkv", exact_total=True)
    for cap in (32, 33, 64, 128, 1000):
        for length in (20, 100, 200, 250, 5000):
            kept = [policy.layer_budget(cap, i, num_layers, length) for i in range(num_layers)]
            assert sum(kept) == num_layers * cap
            assert kept == sorted(kept, reverse=True)
            if length >= cap:
                assert kept[-1] >= 32 and kept[0] <= length


@pytest.mark.parametrize("name", ["snapkv", "laq", "speckv", "adakv", "h2o"])
def test_a_budget_below_the_window_is_an_error(name):
    with pytest.raises(RuntimeError, match=f"budget must hold .*{WINDOW}.* got 3"):
        Eviction(target(2), policy_of(name)).prefill(torch.tensor([text(40)]), budget=3)


def test_streaming_needs_room_for_its_sinks():
    with pytest.raises(RuntimeError, match="4 pinned entries, got 3"):
        Eviction(target(2), policy_of("streaming_llm")).prefill(torch.tensor([text(40)]), budget=3)


def test_random_depends_on_its_seed():
    ids = torch.tensor([text(200)])
    first, again, other = (
        kept_by(Eviction(target(2), make_policy("random", seed=seed)).prefill(ids, budget=50))
        for seed in (1, 1, 2)
    )
    assert first == again != other
    heads = [tuple(head) for layer in first for head in layer]
    assert len(set(heads)) == len(heads)


def test_drafts_end_at_the_end_token(monkeypatch):
    """The end token itself is part of the answer, and nothing after it."""
    model, reference = target(2), dense(2)
    tokens = text(50)
    answer = reference.greedy(tokens, DRAFT)
    stop = next(i for i in range(1, DRAFT) if answer[i] not in answer[:i])
    monkeypatch.setattr(model.generation_config, "eos_token_id", answer[stop])
    ids = torch.tensor([tokens])
    ended = Eviction(model, policy_of("oracle")).prefill(ids, budget=12)
    for count in range(1, DRAFT + 1):
        given = make_policy("oracle", responses=[answer[:count]])
        same = kept_by(Eviction(model, given).prefill(ids, budget=12)) == kept_by(ended)
        assert same == (count == stop + 1)
    policy = policy_of("laq")
    rows: list[int] = []
    monkeypatch.setattr(
        policy,
        "evict",
        lambda call: rows.append(call.num_draft) or type(policy).evict(policy, call),
    )
    monkeypatch.setattr(model.generation_config, "eos_token_id", [answer[0], 1])
    Eviction(model, policy).prefill(ids, budget=12)
    assert rows == [1] * 3


def test_oracle_takes_responses():
    """One a row, cut to ``max_tokens``."""
    model, reference = target(2), dense(2)
    rows, answers = [text(50), text(30)], [text(9), text(3)]
    policy = make_policy("oracle", responses=answers, max_tokens=5)
    cache = Eviction(model, policy).prefill(*batch_of(rows, "left"), budget=12)
    for row, (tokens, answer) in enumerate(zip(rows, answers, strict=True)):
        n, answer = len(tokens), answer[:5]
        run = reference.run(tokens + answer)
        assert kept_by(cache, row) == [
            ref.oracle(query[:, n:], key, 12) for query, key in zip(run.query, run.key, strict=True)
        ]
    with pytest.raises(ValueError, match="2 responses for a batch of 1"):
        Eviction(model, policy).prefill(torch.tensor([text(20)]), budget=12)
    with pytest.raises(ValueError, match="must not be empty"):
        make_policy("oracle", responses=[[]])


def test_speckv_refuses_what_a_draft_model_cannot_read():
    model = target(2)
    embeds = model.get_input_embeddings()(torch.tensor([text(20)])).detach()
    with pytest.raises(ValueError, match=r"'speckv'.*token ids"):
        Eviction(model, policy_of("speckv")).prefill(inputs_embeds=embeds, budget=12)
    drafter = tiny_llama(2, vocabulary=5000)
    with pytest.raises(ValueError, match="the model has 97: they must share a tokenizer"):
        Eviction(model, make_policy("speckv", draft_model=drafter)).prefill(
            torch.tensor([text(40)]), budget=33
        )


def test_names():
    assert len(set(POLICY_NAMES)) == len(POLICY_NAMES) == 11
    with pytest.raises(ValueError, match="unknown policy 'snap'; there are full, lookahead"):
        make_policy("snap")
    with pytest.raises(TypeError, match="draft_model"):
        make_policy("speckv")


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("snapkv", {"window": 0}, "window must be >= 1, got 0"),
        ("adakv", {"window": 0}, "window must be >= 1, got 0"),
        ("adakv", {"pool_kernel": 4}, "pool_kernel must be odd and positive, got 4"),
        ("adakv", {"floor_ratio": 1.5}, r"floor_ratio must be in \[0, 1\], got 1.5"),
        ("pyramidkv", {"beta": 0}, "beta must be >= 1, got 0"),
        ("streaming_llm", {"num_sink": -1}, "num_sink must be >= 0, got -1"),
        ("h2o", {"num_recent": -1}, "num_recent must be >= 0, got -1"),
        ("laq", {"window": -1}, "window must be >= 0, got -1"),
        ("laq", {"draft_tokens": 0}, "draft_tokens must be >= 1, got 0"),
        ("speckv", {"draft_model": None, "draft_tokens": 0}, "draft_tokens must be >= 1, got 0"),
        ("oracle", {"max_tokens": 0}, "max_tokens must be >= 1, got 0"),
    ],
)
def test_options_that_mean_nothing(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_policy(name, **options)


@pytest.mark.parametrize("name", ["laq", "speckv"])
def test_a_draft_may_choose_alone(name):
    """Without a window nothing is pinned: the budget is met, and no head has to end at the end."""
    options = {"draft_model": draft_model()} if name == "speckv" else {"draft_window": WINDOW}
    policy = make_policy(name, window=0, draft_tokens=DRAFT, **options)
    kept = kept_by(Eviction(target(2), policy).prefill(torch.tensor([text(70)]), budget=12))
    assert all(len(head) == 12 for layer in kept for head in layer)
    assert any(head[-1] < 69 for layer in kept for head in layer)


@pytest.mark.parametrize("name", TRANSCRIBED)
def test_generate(name):
    """Greedy, token for token what the dense model with the same cut writes."""
    tokens = text(60)
    cut = Cut(60, transcribed(name, dense(2), tokens, 20))
    out = Eviction(target(2), policy_of(name)).generate(
        torch.tensor([tokens]), budget=20, max_new_tokens=5, do_sample=False
    )
    assert out[0, 60:].tolist() == dense(2).greedy(tokens, 5, [cut])


def test_a_model_may_draft_for_itself():
    """Also within generate; without window and pooling SpecKV is then the oracle."""
    model, ids = target(2), torch.tensor([text(60)])
    alone = make_policy("speckv", draft_model=model, window=0, pool_kernel=1, draft_tokens=DRAFT)
    options = {"budget": 20, "max_new_tokens": 5, "do_sample": False}
    evictions = Eviction(model, alone), Eviction(model, policy_of("oracle"))
    first, second = (eviction.generate(ids, **options) for eviction in evictions)
    assert torch.equal(first, second)
    first, second = (kept_by(eviction.prefill(ids, budget=20)) for eviction in evictions)
    assert first == second


class KeyNorm(ScorePolicy):
    """The policy that docs/method.md shows, with sinks."""

    name = "key_norm"
    num_sink = 2

    def __init__(self, num_recent):
        self.num_recent = num_recent

    def score(self, call):
        return -call.key.float().norm(dim=-1)


@pytest.mark.parametrize("num_recent", [0, 5])
def test_a_policy_of_one_method(num_recent):
    """The pinned entries and the best of the others stay."""
    tokens = text(60)
    cache = Eviction(target(2), KeyNorm(num_recent)).prefill(torch.tensor([tokens]), budget=20)
    assert kept_by(cache) == [
        [_smallest(key, 20, pinned={0, 1, *range(60 - num_recent, 60)}) for key in layer]
        for layer in dense(2).run(tokens).key
    ]


def _smallest(key, cap, pinned):
    norms = key.norm(dim=-1).tolist()
    others = sorted(set(range(len(norms))) - pinned, key=lambda place: norms[place])
    return sorted([*pinned, *others[: cap - len(pinned)]])
