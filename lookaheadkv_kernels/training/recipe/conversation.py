"""Several turns made from passages; the last one asks about something said earlier."""

from __future__ import annotations

from .draft import Desk, Draft
from .passages import SELF_ANSWERED_SHARE, ask_about_code, ask_about_prose
from .puzzle import key_value, made_up_fact

MAX_PASSAGES = 4
FACT_SHARE = 0.45
OVERHEAD = 24  # tokens a turn adds to its passage, about
ORDINALS = ("first", "second", "third", "fourth")
REPLIES = (
    "Thank you, I have read it.",
    "Got it. What would you like to know?",
    "Okay.",
    "I see. Please go on.",
    "Interesting! Do you have a question about it?",
    "Understood.",
)
OPENINGS = (
    "Here is a text:",
    "Please read this:",
    "Next one:",
    "Have a look at this passage.",
    "I found this:",
)


def conversation(desk: Desk) -> Draft:
    """A chat over one to four passages, with a fact told between them or a question on one."""
    rng = desk.rng
    puzzle = rng.choice((key_value, made_up_fact))(desk) if desk.chance(FACT_SHARE) else None
    needles = [] if puzzle is None else list(puzzle.needles)
    count = rng.randint(1, min(MAX_PASSAGES, max(1, desk.tokens // 160)))
    overhead = len(desk.ids(desk.chat([("user", " ".join(needles))]))) + count * OVERHEAD + 20
    size = max((desk.tokens - overhead) // count, 32)

    messages: list[tuple[str, str]] = []
    passages: list[tuple[bool, str]] = []
    for _ in range(count):
        is_code = desk.chance(0.25)
        documents = desk.corpora.code if is_code else desk.corpora.prose
        passage = desk.text(desk.window(documents, size)).strip()
        passages.append((is_code, passage))
        messages.append(("user", f"{rng.choice(OPENINGS)}\n\n{passage}"))
        messages.append(("assistant", rng.choice(REPLIES)))
    for needle in needles:
        at = 2 * rng.randrange(count)
        said = messages[at][1]
        joined = f"{needle}\n\n{said}" if desk.chance(0.5) else f"{said}\n\n{needle}"
        messages[at] = ("user", joined)

    if puzzle is not None:
        question, answers = puzzle.question, puzzle.answers
        said = f"{puzzle.answer_start} {', '.join(answers)}.".strip()
        messages.append(("user", question))
    else:
        about = rng.randrange(count)
        is_code, passage = passages[about]
        asked = (ask_about_code if is_code else ask_about_prose)(desk, passage)
        messages.append(("user", f"About the {ORDINALS[about]} text I gave you: {asked.request}"))
        said, answers = asked.response or "", (asked.answer,) if asked.response else ()
    known = said != "" and not desk.chance(SELF_ANSWERED_SHARE)
    return Draft("chat", desk.chat(messages), said + desk.end if known else None, answers)
