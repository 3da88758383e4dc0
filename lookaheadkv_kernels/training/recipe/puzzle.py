"""Needles and the question about them: one function for each family of retrieval task."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from .draft import Desk
from .templates import (
    FACTS,
    INSTRUCTIONS,
    NEEDLES,
    QUESTIONS,
    RULER_INSTRUCTION,
    RULER_INSTRUCTION_ALL,
    RULER_NEEDLE,
    RULER_QUESTION,
    RULER_QUESTION_ALL,
    TYPES,
    Question,
)
from .values import KEY_KINDS, VALUE_KINDS, Words
from .words import CITIES, JOBS, every_fifth

RULER_SHARE = 0.35
MAX_DISTRACTORS = 8
NEEDLE_TOKENS = 128  # of the prompt there must be for each needle: two UUIDs take 60
RECORD_KEYS = {"pair": 0.4, "uuid": 0.2, "number": 0.15, "code": 0.15, "name": 0.1}


class Puzzle(NamedTuple):
    """What to hide and what to ask.

    ``stuffing``, where given, is the only haystack that fits (more records of a table, say), and
    ``frame`` what stands before and after it.
    """

    instruction: str
    needles: tuple[str, ...]  # in this order
    question: str
    answer_start: str
    answers: tuple[str, ...]
    stuffing: Iterator[str] | None = None
    frame: tuple[str, str] = ("", "")
    inline: bool = True  # needles may share a line with other text


def key_value(desk: Desk) -> Puzzle:
    """Values for keys: one or several of each, other keys as distractors, RULER's words or ours."""
    return _key_value(
        desk, VALUE_KINDS, {"single": 0.45, "keys": 0.35, "values": 0.1, "queries": 0.1}
    )


def a_number(desk: Desk) -> Puzzle:
    """The number for a key, alone or among a few others."""
    return _key_value(desk, {"number": 1.0}, {"single": 0.75, "keys": 0.25})


def _key_value(desk: Desk, value_kinds: dict[str, float], shapes: dict[str, float]) -> Puzzle:
    rng, words = desk.rng, Words(desk.rng, desk.split)
    ruler = desk.chance(RULER_SHARE)
    value_kind, key_kind = desk.pick(value_kinds), desk.pick(KEY_KINDS)
    digits = 7 if ruler and desk.chance(0.7) else rng.randint(4, 9)
    noun = value_kind if ruler else rng.choice(TYPES[value_kind])
    needle = RULER_NEEDLE if ruler else rng.choice(every_fifth(desk.split, NEEDLES))

    shape = desk.pick(shapes)
    most = max(2, desk.tokens // NEEDLE_TOKENS)
    asked = min(rng.randint(2, 4), most) if shape == "queries" else 1
    copies = min(rng.randint(2, 4), most) if shape == "values" else 1
    distractors = rng.randint(1, MAX_DISTRACTORS) if shape != "single" else 0
    distractors = min(distractors, most - asked * copies)

    def stated(key: str, value: str) -> str:
        return _capitalised(needle.format(type=noun, key=key, value=value))

    keys: list[str] = []

    def fresh_key() -> str:
        return _first(lambda: words.key(key_kind), lambda key: key not in keys)

    for _ in range(asked):
        keys.append(fresh_key())
    values = [words.value(value_kind, digits) for _ in range(asked * copies)]
    needles = [stated(keys[i // copies], value) for i, value in enumerate(values)]
    needles += [stated(fresh_key(), words.value(value_kind, digits)) for _ in range(distractors)]
    rng.shuffle(needles)

    target = keys[0] if asked == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"
    several = len(values) > 1
    if ruler or several:  # only RULER's questions come in the plural
        noun = noun if ruler else value_kind
        question = RULER_QUESTION_ALL if several else RULER_QUESTION
        if not ruler:
            question = Question(*(part.replace("special magic ", "") for part in question))
    else:
        question = rng.choice(every_fifth(desk.split, QUESTIONS))
    instruction = _instruction(desk)
    if ruler and desk.chance(0.8):
        instruction = (RULER_INSTRUCTION_ALL if several else RULER_INSTRUCTION).format(type=noun)

    stuffing = None
    if shape == "keys" and desk.chance(0.25):  # nothing but needles
        stuffing = _endless(lambda: stated(fresh_key(), words.value(value_kind, digits)), " ")
    return Puzzle(
        instruction,
        tuple(needles),
        _capitalised(question.text.format(type=noun, key=target)),
        _capitalised(question.answer_start.format(type=noun, key=target)),
        tuple(values),
        stuffing,
    )


def made_up_fact(desk: Desk) -> Puzzle:
    """A fact about made-up people and things, among others of the same and of other forms."""
    rng, words = desk.rng, Words(desk.rng, desk.split)
    facts = every_fifth(desk.split, FACTS)

    def fill(fact: int) -> tuple[dict[str, str], str]:
        slots = {
            "name": rng.choice(words.names),
            "thing": words.pair(" "),
            "city": rng.choice(CITIES),
            "job": rng.choice(JOBS),
            "value": words.slot(facts[fact].slot),
        }
        return slots, facts[fact].statement.format(**slots)

    form = rng.randrange(len(facts))
    slots, needle = fill(form)
    question = facts[form].question.format(**slots)
    needles = [needle]
    for _ in range(rng.randint(0, MAX_DISTRACTORS)):
        other = form if desk.chance(0.4) else rng.randrange(len(facts))
        other_slots, statement = fill(other)
        if facts[other].question.format(**other_slots) != question:
            needles.append(statement)
    rng.shuffle(needles)
    answer_start = facts[form].answer_start.format(**slots)
    return Puzzle(_instruction(desk), tuple(needles), question, answer_start, (slots["value"],))


def passkey(desk: Desk) -> Puzzle:
    """One number, said twice."""
    key = Words(desk.rng, desk.split).number(desk.rng.randint(4, 9))
    name = desk.rng.choice(("pass key", "passkey", "secret key", "magic number", "password"))
    needle = f"The {name} is {key}. Remember it. {key} is the {name}."
    question = desk.rng.choice((f"What is the {name}?", f"What is the {name} in the text?"))
    return Puzzle(_instruction(desk), (needle,), question, f"The {name} is", (key,))


def variables(desk: Desk) -> Puzzle:
    """Chains of assignments, as in RULER's variable tracking; asked: all names of one value."""
    rng, words = desk.rng, Words(desk.rng, desk.split)
    hops, chains = rng.randint(1, 4), rng.randint(1, 3)
    names = ["".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=5)) for _ in range(20)]
    needles: list[str] = []
    numbers = [words.number(5) for _ in range(chains)]
    for number in numbers:
        chain = [names.pop() for _ in range(hops + 1)]
        lines = [f"VAR {chain[0]} = {number}"]
        lines += [f"VAR {b} = VAR {a}" for a, b in pairwise(chain)]
        # Lines of a chain keep their order, chains are mixed.
        places = sorted(rng.choices(range(len(needles) + 1), k=len(lines)))
        for shift, (place, line) in enumerate(zip(places, lines, strict=True)):
            needles.insert(place + shift, line)
        answers = tuple(chain)
    return Puzzle(
        "Memorize and track the chain(s) of variable assignment hidden in the following text.",
        tuple(needles),
        f"Question: Find all variables that are assigned the value {number} in the text above.",
        f"Answer: According to the chain(s) of variable assignment in the text above, "
        f"{len(answers)} variables are assigned the value {number}, they are:",
        answers,
        inline=False,
    )


def records(desk: Desk) -> Puzzle:
    """A long dictionary, list or table; asked: the value of one key."""
    rng, words = desk.rng, Words(desk.rng, desk.split)
    key_kind, value_kind = desk.pick(RECORD_KEYS), desk.pick(VALUE_KINDS)
    row, frame = rng.choice(
        (
            ("  {k}: {v},", ("{\n", "\n}")),
            ("{key}: {value}", ("", "")),
            ("- {key}: {value}", ("", "")),
            ("{key} = {value}", ("", "")),
            ("{key},{value}", ("key,value\n", "")),
            ("| {key} | {value} |", ("| key | value |\n|---|---|\n", "")),
            ("{key}\t{value}", ("", "")),
        )
    )

    def entry(key: str, value: str) -> str:
        return row.format(key=key, value=value, k=json.dumps(key), v=json.dumps(value))

    key, value = words.key(key_kind), words.value(value_kind, 6)

    def other_key() -> str:
        return _first(lambda: words.key(key_kind), lambda other: other != key)

    question, answer_start = rng.choice(
        (
            (f"What is the value of {key}?", f"The value of {key} is"),
            (f"Which value is listed for {key}?", f"The value listed for {key} is"),
            (f"Look up {key} in the list.", f"{key}:"),
            (f"What stands next to {key}?", ""),
            (f"Return the value for the key {json.dumps(key)}.", f"{json.dumps(key)}:"),
        )
    )
    stuffing = _endless(lambda: entry(other_key(), words.value(value_kind, 6)), "\n")
    instruction = rng.choice(("Here is some data.", "Below are key-value pairs.", "Data:"))
    return Puzzle(
        instruction,
        (entry(key, value),),
        question,
        answer_start,
        (value,),
        stuffing,
        frame,
        inline=False,
    )


def frequent_words(desk: Desk) -> Puzzle:
    """A numbered list of words; asked: those that come up again and again."""
    rng, words = desk.rng, Words(desk.rng, desk.split)
    pool = rng.sample([*words.nouns, *words.adjectives], 60)
    frequent, rare = pool[: rng.randint(2, 5)], pool[5:]

    def numbered() -> Iterator[str]:
        number = 0
        while True:
            number += 1
            yield f"{number}. {rng.choice(frequent if rng.random() < 0.5 else rare)} "

    question = f"Question: What are the {len(frequent)} most common words in the above list?"
    return Puzzle(
        "Below is a numbered list of words. In these words, some appear more often than others. "
        "Memorize the ones that appear most often.",
        (),
        question,
        "Answer: The words that appear most often in the list are:",
        tuple(frequent),
        numbered(),
    )


def _endless(make: Callable[[], str], separator: str) -> Iterator[str]:
    while True:
        yield make() + separator


def _first(draw: Callable[[], str], fits: Callable[[str], bool]) -> str:
    """The first draw that fits."""
    while not fits(drawn := draw()):
        pass
    return drawn


def _instruction(desk: Desk) -> str:
    return desk.rng.choice(every_fifth(desk.split, INSTRUCTIONS))


def _capitalised(text: str) -> str:
    """With a capital if an article starts it: keys and values stay as they are."""
    return "The " + text[4:] if text.startswith("the ") else text
