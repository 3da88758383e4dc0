"""Shows what every policy kept of one prompt and the answer from it, to inspect failures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ..integrations.transformers.batched_decoding import decode_together
from ..integrations.transformers.devices import input_device
from ..integrations.transformers.shared_prefill import SharedPrefill
from ..policies import FullCache
from ..policies.base import Policy
from ..visual import Mark, Picture, PolicyView, find_mark, split_pieces
from ..visual.tokens import Piece
from .task import Sample


class Answer(NamedTuple):
    """The answer from one policy's cache at one budget."""

    policy: str
    budget: int | float | None  # None: the full cache
    text: str
    score: float | None  # from 0 to 1; None: it cannot be scored


def inspect_prompt(
    model: Any,
    tokenizer: Any,
    sample: Sample,
    policies: dict[str, Policy],
    budgets: Sequence[int | float],
    *,
    score: Callable[[Sequence[str], Sample], float | None],
    marked: Sequence[tuple[str, str]] = (),
    title: str = "",
    chunk: int | None = None,
) -> tuple[Picture, list[Answer]]:
    """A column for every policy and budget; the full cache's answer stands above them.

    Args:
        model: a transformers model with our attention attached.
        tokenizer: its tokenizer.
        sample: the prompt, and how long answers may be.
        policies: by the names shown above the columns.
        budgets: entries to keep.
        score: scores an answer.
        marked: (label, text); the first place where the prompt contains the text is marked.
        title: of the page.
        chunk: prefill in parts of so many tokens; None reads the prompt at once.

    Raises:
        ValueError: no policy, or a text to mark that the prompt does not contain.
        RuntimeError: a budget that cannot hold what a policy pins.
    """
    pieces, marks = pieces_and_marks(tokenizer, sample, marked)
    settings = [(name, budget) for name in policies for budget in budgets]
    cells: list[tuple[Policy, int | float]] = [(FullCache(), 1.0)]
    cells += [(policies[name], budget) for name, budget in settings]
    ids = torch.tensor([sample.prompt_ids], device=input_device(model))
    shared = SharedPrefill(model, ids, cells, chunk=chunk, record=True)
    caches = [shared.cut(policy, budget) for policy, budget in cells]
    logits = torch.cat([cache.logits for cache in caches if cache.logits is not None])
    answers = [
        Answer(name, budget, text, score([text], sample))
        for (name, budget), ids_of in zip(
            [("full", None), *settings],
            decode_together(model, caches, logits, sample.max_new_tokens),
            strict=True,
        )
        for text in [tokenizer.decode(ids_of, skip_special_tokens=True)]
    ]
    views = [
        PolicyView.from_choices(
            f"{answer.policy}, {answer.budget}",
            cache.choices,
            note=_note(answer),
            good=None if answer.score is None else answer.score == 1,
        )
        for answer, cache in zip(answers[1:], caches[1:], strict=True)
    ]
    subtitle = [f"full cache: {_note(answers[0])}"]
    if sample.references:
        subtitle.append(f"wanted: {', '.join(sample.references)}")
    title = title or f"What stays of {len(sample.prompt_ids):,} tokens"
    return Picture(pieces, views, marks, title, " · ".join(subtitle)), answers


def pieces_and_marks(
    tokenizer: Any, sample: Sample, marked: Sequence[tuple[str, str]]
) -> tuple[list[Piece], list[Mark]]:
    """The prompt's text by tokens, and what is marked in it.

    Raises:
        ValueError: a text to mark that the prompt does not contain.
    """
    pieces = split_pieces(tokenizer, sample.prompt_ids)
    return pieces, _apart([find_mark(label, pieces, text) for label, text in marked])


def _note(answer: Answer) -> str:
    score = "" if answer.score is None else f"{100 * answer.score:.0f} %: "
    return score + " ".join(answer.text.split())


def _apart(marks: Sequence[Mark]) -> list[Mark]:
    """Marks without those that overlap one before them."""
    kept: list[Mark] = []
    for mark in marks:
        if all(mark.stop <= other.start or other.stop <= mark.start for other in kept):
            kept.append(mark)
    return kept
