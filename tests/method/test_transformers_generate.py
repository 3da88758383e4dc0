"""What `generate` can do, it does from an evicted cache too."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from support.eviction_model import attached, continue_greedily, text, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTH = 40
NEW = 6


@pytest.fixture
def lkv() -> Any:
    return attached(tiny())


def step(lkv: Any, cache: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities after one token for each row."""
    with torch.no_grad():
        logits = lkv.model(input_ids=tokens[:, None], **{lkv.runner._cache_argument: cache}).logits
    return logits[:, -1].log_softmax(dim=-1)


def slow_beams(lkv: Any, ids: torch.Tensor, budget: int, beams: int) -> list[int]:
    """Beam search without ends of sequence, each beam on a cache of its own."""
    cache = lkv.prefill(ids, budget=budget)
    first = cache.logits[0].log_softmax(dim=-1).topk(beams)
    live = [
        (score, [token], cache.fork())
        for score, token in zip(first.values.tolist(), first.indices.tolist(), strict=True)
    ]
    for _ in range(NEW - 1):
        found = []
        for score, tokens, own in live:
            after = step(lkv, own, torch.tensor(tokens[-1:]))[0]
            found += [(score + p, [*tokens, t], own) for t, p in enumerate(after.tolist())]
        found.sort(key=lambda beam: -beam[0])
        live = [(score, tokens, own.fork()) for score, tokens, own in found[:beams]]
    return live[0][1]


@pytest.mark.parametrize("beams", [2, 4])
def test_beam_search(lkv: Any, beams: int) -> None:
    changed = 0
    for seed in range(4):
        ids = text(LENGTH, seed)
        options = {"num_beams": beams, "max_new_tokens": NEW, "do_sample": False}
        out = lkv.generate(ids, budget=8, length_penalty=0.0, **options)[0, LENGTH:].tolist()
        assert out == slow_beams(lkv, ids, 8, beams)
        changed += out != lkv.generate(ids, budget=8, max_new_tokens=NEW)[0, LENGTH:].tolist()
    assert changed  # beams went other ways than greedy decoding: their caches were reordered


def test_beam_search_over_a_padded_batch(lkv: Any) -> None:
    long, short = text(LENGTH), text(17, 1)
    ids = torch.cat([long, torch.cat([torch.zeros(1, LENGTH - 17).long(), short], dim=1)])
    options = {"num_beams": 3, "max_new_tokens": NEW, "do_sample": False, "length_penalty": 0.0}
    out = lkv.generate(ids, (ids != 0).long(), budget=8, **options)[:, LENGTH:].tolist()
    assert out == [slow_beams(lkv, long, 8, 3), slow_beams(lkv, short, 8, 3)]


def test_sampling_is_that_of_the_seed(lkv: Any) -> None:
    ids = text(LENGTH)
    options = {"max_new_tokens": NEW, "do_sample": True, "top_k": 0, "top_p": 1.0}
    outs = []
    for _ in range(2):
        torch.manual_seed(5)
        outs.append(lkv.generate(ids, budget=8, **options)[0, LENGTH:].tolist())
    cache = lkv.prefill(ids, budget=8)
    torch.manual_seed(5)
    by_hand = [int(torch.multinomial(cache.logits.softmax(dim=-1), 1))]
    while len(by_hand) < NEW:
        probabilities = step(lkv, cache, torch.tensor(by_hand[-1:])).exp()
        by_hand.append(int(torch.multinomial(probabilities, 1)))
    assert outs[0] == outs[1] == by_hand


def test_several_answers_to_one_prompt(lkv: Any) -> None:
    ids = text(LENGTH)
    options = {"max_new_tokens": NEW, "do_sample": True, "num_return_sequences": 3}
    torch.manual_seed(1)
    out = lkv.generate(ids, budget=8, **options)
    torch.manual_seed(1)
    three = lkv.generate(ids.expand(3, -1), budget=8, **(options | {"num_return_sequences": 1}))
    assert out.equal(three)
    assert len({tuple(row) for row in out.tolist()}) > 1
    # The same from one prefill, by hand.
    cache = lkv.prefill(ids, budget=8)
    cache.batch_repeat_interleave(3)
    again = step(lkv, cache, torch.tensor([5, 5, 5]))
    assert again.shape[0] == 3
    torch.testing.assert_close(again[0], again[2])


def test_a_streamer_sees_the_tokens(lkv: Any) -> None:
    class Streamer:
        def __init__(self) -> None:
            self.tokens: list[int] = []
            self.ended = False

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    streamer = Streamer()
    out = lkv.generate(
        text(LENGTH), budget=8, max_new_tokens=NEW, do_sample=False, streamer=streamer
    )
    assert streamer.tokens == out[0].tolist()
    assert streamer.ended


def test_details_in_a_dict(lkv: Any) -> None:
    ids = text(LENGTH)
    options = {"max_new_tokens": NEW, "do_sample": False}
    out = lkv.generate(ids, budget=8, return_dict_in_generate=True, output_logits=True, **options)
    assert out.sequences.equal(lkv.generate(ids, budget=8, **options))
    torch.testing.assert_close(out.logits[0], lkv.prefill(ids, budget=8).logits)
    cache = out[lkv.runner._cache_argument]
    assert [layer.stored_length for layer in cache.layers] == [8 + NEW - 1] * 3
    assert cache.get_seq_length() == LENGTH + NEW - 1


def test_plain_generate_goes_on_from_a_prefilled_cache(lkv: Any) -> None:
    ids = text(LENGTH)
    expected = lkv.generate(ids, budget=8, max_new_tokens=NEW, do_sample=False)
    cache = lkv.prefill(ids, budget=8)
    so_far = torch.cat([ids, cache.logits.argmax(dim=-1, keepdim=True)], dim=1)
    out = lkv.model.generate(
        so_far,
        max_new_tokens=NEW - 1,
        do_sample=False,
        **{lkv.runner._cache_argument: cache},
    )
    assert out.equal(expected)


def test_a_plain_model_generate_evicts_within_the_block(lkv: Any) -> None:
    ids = text(LENGTH)
    plain = lkv.model.generate(ids, max_new_tokens=NEW, do_sample=False)
    expected = lkv.generate(ids, budget=8, max_new_tokens=NEW, do_sample=False)
    assert not expected.equal(plain)
    with lkv.evicting(8):
        assert lkv.model.generate(ids, max_new_tokens=NEW, do_sample=False).equal(expected)
    assert lkv.model.generate(ids, max_new_tokens=NEW, do_sample=False).equal(plain)


def test_the_block_holds_for_a_thread_that_generates(lkv: Any) -> None:
    ids = text(LENGTH)
    expected = lkv.generate(ids, budget=8, max_new_tokens=NEW, do_sample=False)
    outs = []

    def work() -> None:
        outs.append(lkv.model.generate(ids, max_new_tokens=NEW, do_sample=False))

    with lkv.evicting(8):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert outs[0].equal(expected)


def test_blocks_nest_and_the_inner_one_counts(lkv: Any) -> None:
    ids = text(LENGTH)
    small, large = (
        lkv.generate(ids, budget=budget, max_new_tokens=NEW, do_sample=False) for budget in (8, 25)
    )
    with lkv.evicting(8):
        with lkv.evicting(25):
            assert lkv.model.generate(ids, max_new_tokens=NEW, do_sample=False).equal(large)
        assert lkv.model.generate(ids, max_new_tokens=NEW, do_sample=False).equal(small)
        assert lkv.prefill(ids, budget=25).layers[0].stored_length == 25


def test_ends_of_sequence() -> None:
    plain = attached(tiny())
    ids = torch.cat([text(LENGTH), text(LENGTH, 1)])
    free = plain.generate(ids, budget=8, max_new_tokens=NEW, do_sample=False)[:, LENGTH:]
    end = int(free[0, 2])
    lkv = attached(tiny(eos_token_id=end))
    out = lkv.generate(ids, budget=8, max_new_tokens=NEW, do_sample=False)[:, LENGTH:]
    for row in range(2):
        tokens = free[row].tolist()
        stop = tokens.index(end) + 1 if end in tokens else NEW
        assert out[row].tolist()[:stop] == tokens[:stop]
        assert set(out[row].tolist()[stop:]) <= {0}


def test_the_eager_attention_is_served_too() -> None:
    model = tiny()
    model.set_attn_implementation("eager")
    lkv = attached(model)
    ids = text(LENGTH)
    other = attached(tiny())
    options = {"budget": 8, "max_new_tokens": NEW, "do_sample": False}
    assert lkv.generate(ids, **options).equal(other.generate(ids, **options))
    lkv.detach()
    assert model.config._attn_implementation == "eager"


def test_continue_greedily_is_generate(lkv: Any) -> None:
    ids = text(LENGTH)
    out = lkv.generate(ids, budget=8, max_new_tokens=NEW, do_sample=False)
    by_hand = continue_greedily(lkv, lkv.prefill(ids, budget=8), ids, NEW)
    assert out[:, LENGTH:].tolist() == by_hand
