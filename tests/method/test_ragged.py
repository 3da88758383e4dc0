"""Ada-KV's cache: heads of different lengths, in memory too, and everything a cache can do."""

from __future__ import annotations

import pytest
import torch
from support.policy_calls import (
    MORE,
    WINDOW,
    batch_of,
    decoded,
    dense,
    kept_by,
    policy_of,
    target,
    text,
    transcribed,
)
from support.policy_model import Cut

from lookaheadkv_kernels.integrations.transformers import EvictableCache, Eviction
from lookaheadkv_kernels.integrations.transformers.compat import cache_argument
from lookaheadkv_kernels.integrations.transformers.ragged import RaggedLayer

pytestmark = pytest.mark.usefixtures("one_thread")

ENTRY = 2 * 8 * 4  # bytes of one entry of one head: K and V, 8 dimensions, fp32


def prefilled(rows: list[list[int]], budget: int = 20) -> EvictableCache:
    return Eviction(target(2), policy_of("adakv")).prefill(*batch_of(rows, "left"), budget=budget)


def test_memory_is_what_the_heads_keep():
    rows = [text(70), text(40)]
    cache = prefilled(rows)
    kept = [layer for row in range(2) for layer in kept_by(cache, row)]
    assert any(len(heads[0]) != len(heads[1]) for heads in kept)
    entries = sum(len(head) for heads in kept for head in heads)
    assert cache.nbytes() == entries * ENTRY
    buffers = [t for layer in cache.layers for t in (layer.flat_keys, layer.flat_values)]
    buffers += [t for layer in cache.layers for t in (layer.keys, layer.values)]
    assert sum(t.untyped_storage().nbytes() for t in buffers) == entries * ENTRY
    # No more than a uniform budget, up to the rounding of a head's share.
    assert entries <= 2 * 3 * 2 * (20 + 1)
    decoded(target(2), cache, [MORE, MORE])
    assert cache.nbytes() == (entries + 2 * 3 * 2 * len(MORE)) * ENTRY


def test_decoding_is_that_of_a_masked_dense_model():
    """Token by token and several at once."""
    model, reference, tokens = target(2), dense(2), text(70)
    expected = transcribed("adakv", reference, tokens, 20)
    more = text(10)
    whole = reference.run(tokens + more, [Cut(70, expected)]).logits[70:]
    cache = prefilled([tokens])
    at_once = cache.fork()
    steps = decoded(model, cache, [more])[0]
    torch.testing.assert_close(steps, whole, atol=1e-4, rtol=1e-4)
    argument = {cache_argument(model): at_once}
    with torch.no_grad():
        logits = model(torch.tensor([more[:3]]), **argument, use_cache=True).logits[0]
        rest = model(torch.tensor([more[3:]]), **argument, use_cache=True).logits[0]
    torch.testing.assert_close(torch.cat([logits, rest]), whole, atol=1e-4, rtol=1e-4)


def test_rows_move():
    """Reorder, repeat and select give what the rows give alone."""
    model = target(2)
    cache = prefilled([text(70), text(40), text(25)])
    decoded(model, cache, [[7], [8], [9]])
    alone = decoded(model, cache.fork(), [MORE] * 3)
    kept = [kept_by(cache, row) for row in range(3)]
    moves = {
        "reorder_cache": (torch.tensor([2, 0, 0]), [2, 0, 0]),
        "batch_select_indices": (torch.tensor([1]), [1]),
        "batch_repeat_interleave": (2, [0, 0, 1, 1, 2, 2]),
    }
    for method, (argument, rows) in moves.items():
        moved = cache.fork()
        getattr(moved, method)(argument)
        assert [kept_by(moved, row) for row in range(len(rows))] == [kept[row] for row in rows]
        assert moved.row_lengths().tolist() == [cache.row_lengths()[row] for row in rows]
        after = decoded(model, moved, [MORE] * len(rows))
        torch.testing.assert_close(after, alone[rows], atol=1e-5, rtol=1e-5)
    assert [kept_by(cache, row) for row in range(3)] == kept


def test_forks():
    model = target(2)
    cache = prefilled([text(70)])
    before, size = kept_by(cache), cache.nbytes()
    fork = cache.fork()
    first = decoded(model, fork, [MORE])
    assert kept_by(cache) == before and cache.nbytes() == size
    torch.testing.assert_close(decoded(model, cache, [MORE]), first)


def test_generate():
    """Greedy as with steps of one's own; beams run."""
    model, tokens = target(2), text(60)
    eviction = Eviction(model, policy_of("adakv"))
    ids, mask = batch_of([tokens, text(33)], "left")
    out = eviction.generate(ids, mask, budget=20, max_new_tokens=6, do_sample=False)
    expected = transcribed("adakv", dense(2), tokens, 20)
    assert out[0, 60:].tolist() == dense(2).greedy(tokens, 6, [Cut(60, expected)])
    beams = eviction.generate(ids, mask, budget=20, max_new_tokens=6, do_sample=False, num_beams=3)
    assert beams.shape == (2, 66)


def test_what_cannot_be_is_an_error():
    cache = prefilled([text(40), text(20)])
    layer = cache.layers[0]
    assert isinstance(layer, RaggedLayer)
    assert layer.stored_length == max(len(head) for head in kept_by(cache)[0])
    with pytest.raises(ValueError, match="padded"):
        layer.extend_valid(torch.tensor([[False, True], [True, True]]), 2)
    with pytest.raises(NotImplementedError):
        layer.keep()
    with pytest.raises(ValueError, match="policy 'snapkv': later turns"):
        Eviction(target(2), policy_of("snapkv")).prefill(
            torch.tensor([text(30)] * 2), budget=2 * WINDOW, cache=cache
        )
