"""Needles in haystacks: a puzzle, put together as a prompt of the wanted length."""

from __future__ import annotations

from .draft import Desk, Draft
from .filler import KINDS, haystack
from .puzzle import (
    Puzzle,
    a_number,
    frequent_words,
    key_value,
    made_up_fact,
    passkey,
    records,
    variables,
)

FAMILIES = {
    key_value: 0.5,
    made_up_fact: 0.2,
    records: 0.12,
    passkey: 0.08,
    variables: 0.07,
    frequent_words: 0.03,
}
NUMBERS_IN = {"prose": 0.7, "noise": 0.15, "code": 0.1, "lines": 0.05}
CHAT_SHARE = 0.8  # the others are plain completions
PREFIX_SHARE = 0.5  # prompts that begin the answer, as RULER does
SELF_ANSWERED_SHARE = 0.3
BARE_SHARE = 0.35  # answers that are the value and no more
QUESTION_PLACES = {"after": 0.75, "both": 0.15, "before": 0.1}
SENTENCE_SHARE = 0.5  # needles inside a line of the haystack, not on one of their own
MIN_HAYSTACK = 32  # tokens
MARK = "\x00"  # stands for the haystack while the prompt around it is made


def retrieval(desk: Desk) -> Draft:
    """One needle prompt."""
    family = desk.rng.choices(list(FAMILIES), list(FAMILIES.values()))[0]
    return _prompt(desk, "retrieval", family(desk), KINDS)


def numbers(desk: Desk) -> Draft:
    """One number, mostly in running text: what a small cache is the first to answer wrongly.

    The heads that copy digit after digit need all of them, and in prose much else looks important.
    """
    return _prompt(desk, "numbers", a_number(desk), NUMBERS_IN)


def _prompt(desk: Desk, kind: str, puzzle: Puzzle, haystacks: dict[str, float]) -> Draft:
    started = puzzle.answer_start != "" and desk.chance(PREFIX_SHARE)
    outside = _chat(desk, puzzle) if desk.chance(CHAT_SHARE) else _completion(desk, puzzle)
    if started:
        outside += puzzle.answer_start if outside.endswith("\n") else f" {puzzle.answer_start}"
    before, _, after = outside.partition(MARK)

    # A line of a table stays a line; sentences may also stand inside a paragraph.
    needles = [
        needle + (" " if puzzle.inline and desk.chance(SENTENCE_SHARE) else "\n")
        for needle in puzzle.needles
    ]
    overhead = len(desk.ids(f"{before}{''.join(needles)}{after}"))
    pieces = desk.fill(
        puzzle.stuffing or haystack(desk, desk.pick(haystacks)),
        max(desk.tokens - overhead, MIN_HAYSTACK),
    )
    places = sorted(desk.rng.randint(0, len(pieces)) for _ in needles)
    for place, needle in reversed(list(zip(places, needles, strict=True))):
        pieces.insert(place, needle)
    prompt = f"{before}{''.join(pieces).rstrip()}{after}"
    return Draft(kind, prompt, _response(desk, puzzle, started, prompt), puzzle.answers)


def _chat(desk: Desk, puzzle: Puzzle) -> str:
    where = desk.pick(QUESTION_PLACES)
    head = [puzzle.instruction] if desk.chance(0.8) else []
    if where != "after":
        head.append(puzzle.question)
    separator = desk.rng.choice(("\n", "\n\n"))
    middle = f"{puzzle.frame[0]}{MARK}{puzzle.frame[1]}"
    tail = [] if where == "before" else [puzzle.question]
    return desk.chat([("user", separator.join([*head, middle, *tail]))])


def _completion(desk: Desk, puzzle: Puzzle) -> str:
    """A prompt without turns; it ends where the answer goes on with a space."""
    head = f"{puzzle.instruction}\n\n" if desk.chance(0.7) else ""
    form = desk.rng.choice(
        ("\n\nQuestion: {q}\nAnswer:", "\n\nQ: {q}\nA:", "\n{q}", "\n\n{q}\n\nAnswer:")
    )
    question = puzzle.question.removeprefix("Question: ")
    return f"{head}{puzzle.frame[0]}{MARK}{puzzle.frame[1]}{form.format(q=question)}"


def _response(desk: Desk, puzzle: Puzzle, started: bool, prompt: str) -> str | None:
    """The answer as the model would put it; ``None``: let it answer itself."""
    if desk.chance(SELF_ANSWERED_SHARE):
        return None
    *others, last = puzzle.answers
    values = f"{', '.join(others)}, and {last}" if others and desk.chance(0.5) else ""
    values = values or ", ".join(puzzle.answers)
    if not started and puzzle.answer_start and not desk.chance(BARE_SHARE):
        values = f"{puzzle.answer_start} {values}"
    space = "" if prompt.endswith("\n") else " "
    return f"{space}{values}{desk.rng.choice(('.', ''))}{desk.end}"
