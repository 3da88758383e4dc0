"""Padded batches give every row what it gets alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.eviction_model import attached, continue_greedily, kept_heads, text, tiny
from torch import Tensor

from lookaheadkv_kernels.integrations.transformers import Eviction
from lookaheadkv_kernels.policies import SnapKV

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTHS = (50, 1, 23)
SIDES = ("left", "right", "mixed")


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """One batch of rows [1, n], and its mask."""
    longest = max(row.shape[1] for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        length = row.shape[1]
        left = side == "left" or (side == "mixed" and number % 2 == 0)
        where = slice(longest - length, longest) if left else slice(0, length)
        ids[number, where], mask[number, where] = row[0], 1
    return ids, mask


def rows_of(lengths: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    return [text(length, seed + number) for number, length in enumerate(lengths)]


def answers(eviction: Any, rows: list[Tensor], budget: Any) -> list[list[int]]:
    """Of every row alone."""
    options = {"budget": budget, "max_new_tokens": 6, "do_sample": False}
    return [eviction.generate(row, **options)[0, -6:].tolist() for row in rows]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("budget", [12, 30, 100, 0.3, [5, 9, 70]])
@pytest.mark.parametrize("way", [{}, {"mode": "extend"}, {"chunk": 13}])
def test_rows_of_a_batch_are_the_rows_alone(side: str, budget: Any, way: dict) -> None:
    lkv = attached(tiny(), **way)
    rows = rows_of(LENGTHS)
    ids, mask = padded(rows, side)
    out = lkv.generate(ids, mask, budget=budget, max_new_tokens=6, do_sample=False)
    assert out[:, -6:].tolist() == answers(lkv, rows, budget)
    cache = lkv.prefill(ids, mask, budget=budget)
    assert cache.row_lengths().tolist() == list(LENGTHS)
    for number, row in enumerate(rows):
        alone = lkv.prefill(row, budget=budget)
        assert kept_heads(cache, number) == kept_heads(alone)
        torch.testing.assert_close(cache.logits[number], alone.logits[0], rtol=1e-4, atol=1e-4)
    assert continue_greedily(lkv, cache, ids, 6) == answers(lkv, rows, budget)


def test_padding_that_is_a_chunk_by_itself() -> None:
    rows = rows_of((14, 5))
    cache = attached(tiny(), chunk=1).prefill(*padded(rows, "left"), budget=4)
    for number, row in enumerate(rows):
        assert kept_heads(cache, number) == kept_heads(attached(tiny()).prefill(row, budget=4))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("chunk", [None, 9])
def test_a_policy_that_knows_no_padding(side: str, chunk: int | None) -> None:
    snapkv = Eviction(tiny(), SnapKV(window=8), chunk=chunk)
    rows = rows_of((60, 3, 23))
    ids, mask = padded(rows, side)
    out = snapkv.generate(ids, mask, budget=15, max_new_tokens=6, do_sample=False)
    assert out[:, -6:].tolist() == answers(snapkv, rows, 15)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("way", [{}, {"mode": "extend"}, {"chunk": 8}])
@pytest.mark.parametrize("budget", [12, 0.3])
def test_later_turns_of_a_batch(side: str, way: dict, budget: Any) -> None:
    lkv = attached(tiny(), **way)
    turns = [rows_of((40, 5, 23)), rows_of((3, 30, 11), seed=10), rows_of((9, 1, 25), seed=20)]
    together = None
    alone: list[Any] = [None] * 3
    for rows in turns:
        ids, mask = padded(rows, side)
        together = lkv.prefill(ids, mask, budget=budget, cache=together)
        alone = [
            lkv.prefill(row, budget=budget, cache=cache)
            for row, cache in zip(rows, alone, strict=True)
        ]
        for number, cache in enumerate(alone):
            assert kept_heads(together, number) == kept_heads(cache)
            torch.testing.assert_close(
                together.logits[number], cache.logits[0], rtol=1e-4, atol=1e-4
            )
        said = continue_greedily(lkv, together, ids, 3)
        assert said == [continue_greedily(lkv, cache, ids, 3)[0] for cache in alone]


def test_tokens_behind_the_end_of_an_answer_are_padding_in_the_next_turn() -> None:
    model = tiny()
    lkv = attached(model)
    rows = rows_of((30, 18))
    ids, mask = padded(rows, "left")
    name = lkv.runner._cache_argument
    out = lkv.generate(
        ids, mask, budget=12, max_new_tokens=6, do_sample=False, return_dict_in_generate=True
    )
    # Say that the second answer was over after two tokens; then both get a question.
    seen = torch.cat([mask, torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0]])], dim=1)
    question = rows_of((7, 11), seed=5)
    more, more_mask = padded(question, "right")
    whole = torch.cat([out.sequences, more], dim=1)
    both = lkv.generate(
        whole,
        torch.cat([seen, more_mask], dim=1),
        budget=12,
        max_new_tokens=5,
        do_sample=False,
        **{name: out[name]},
    )
    for number, (row, count) in enumerate(zip(rows, (6, 2), strict=True)):
        cache = lkv.prefill(row, budget=12)
        answer = out.sequences[number, 30 : 30 + count].tolist()
        # As in the batch, where the last token is fed with the question, unless it was fed before.
        fed = 5 if count == 6 else count
        for step, token in enumerate(answer[:fed]):
            with torch.no_grad():
                model(
                    input_ids=torch.tensor([[token]]),
                    position_ids=torch.tensor([[row.shape[1] + step]]),
                    **{name: cache},
                )
        new = torch.tensor([[*answer[fed:], *question[number][0].tolist()]])
        cache = lkv.prefill(new, budget=12, cache=cache)
        assert both[number, -5:].tolist() == continue_greedily(lkv, cache, row, 5)[0]
