"""Real text and code: continuations as the source goes on, and chats about a passage."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .corpora import Document
from .draft import Desk, Draft
from .words import every_fifth

PROSE_CHAT_SHARE = 0.4
CODE_CHAT_SHARE = 0.45
RESPONSE_TOKENS = (32, 96)
SELF_ANSWERED_SHARE = 0.3  # of the questions whose answer is known


class Asked(NamedTuple):
    """A request; where the passage has the answer word for word, that and how it is put."""

    request: str
    answer: str = ""
    response: str | None = None


OPEN_PROSE = (
    "Summarize this text in a few sentences.",
    "Continue this text in the same style.",
    "List the key points of the text.",
    "What is the last paragraph about?",
    "Give this text a title and explain your choice.",
    "Explain the text to a child.",
    "What is the main idea of this passage?",
    "Which terms in this text need an explanation? Explain them.",
    "Write three questions that this text answers, and answer them.",
    "What does the beginning of the text say?",
)
OPEN_CODE = (
    "Explain what this code does.",
    "Summarize this file in a few sentences.",
    "Continue this code.",
    "List the functions and classes of this code.",
    "What could go wrong in this code?",
    "Write a unit test for one of the functions above.",
    "Which modules does this code use, and what for?",
    "Write documentation for this code.",
)


def prose(desk: Desk) -> Draft:
    """Prose, raw or with a request in a chat."""
    if desk.chance(PROSE_CHAT_SHARE):
        return _chat(desk, "prose", desk.corpora.prose, ask_about_prose, "")
    return _continuation(desk, "prose", desk.corpora.prose)


def code(desk: Desk) -> Draft:
    """Python, raw or with a request in a chat."""
    if desk.chance(CODE_CHAT_SHARE):
        return _chat(desk, "code", desk.corpora.code, ask_about_code, "```python\n")
    return _continuation(desk, "code", desk.corpora.code)


def ask_about_prose(desk: Desk, passage: str) -> Asked:
    """A request about a passage of prose."""
    found = re.split(r"(?<=[.!?])\s+", passage.strip())
    sentences = [s for s in found if 30 < len(s) < 400 and s[-1] in ".!?"]
    if len(sentences) < 3 or desk.chance(0.5):
        return Asked(desk.rng.choice(every_fifth(desk.split, OPEN_PROSE)))
    at = desk.rng.randrange(len(sentences) - 1)
    form = desk.rng.randrange(5)
    if form == 0:
        return _quote(f'Which sentence comes directly after "{sentences[at]}"?', sentences[at + 1])
    if form == 1:
        start = " ".join(sentences[at].split()[:5])
        return _quote(f'Complete the sentence that starts with "{start}".', sentences[at])
    if form == 2:
        return _quote("Repeat the first complete sentence of the text.", sentences[0])
    words = [w for w in re.findall(r"[A-Za-z]{6,}", sentences[at]) if passage.count(w) == 1]
    if not words:
        return _quote("Repeat the last complete sentence of the text.", sentences[-1])
    return _quote(f'Quote the sentence that mentions "{desk.rng.choice(words)}".', sentences[at])


def ask_about_code(desk: Desk, passage: str) -> Asked:
    """A request about a passage of Python."""
    lines = passage.splitlines()
    found = [(i, m[2]) for i, m in enumerate(map(_DEFINITION.match, lines)) if m]
    names = [name for _, name in found]
    found = [(i, name) for i, name in found if names.count(name) == 1]
    if not found or desk.chance(0.35):
        return Asked(desk.rng.choice(every_fifth(desk.split, OPEN_CODE)))
    at, name = desk.rng.choice(found)
    form = desk.rng.randrange(4)
    if form == 0:
        return _quote(f"Where is `{name}` defined? Repeat the line.", lines[at].strip())
    if form == 1:
        return _quote(f"Write the signature of `{name}`.", lines[at].strip().rstrip(":"))
    body = _body(lines, at)
    returned = [line.strip() for line in body if line.strip().startswith("return ")]
    if form == 2 and len(returned) == 1:
        value = returned[0].removeprefix("return ")
        return Asked(f"What does `{name}` return?", value, f"It returns `{value}`.")
    if form == 2:
        return Asked(f"Explain what `{name}` does.")
    quote = "\n".join([lines[at], *body[:12]]).rstrip()
    return Asked(f"Copy the definition of `{name}`.", quote, f"```python\n{quote}\n```")


def _quote(request: str, answer: str) -> Asked:
    return Asked(request, answer, answer)


_DEFINITION = re.compile(r"^(\s*)(?:async )?(?:def|class) (\w+)\b.*:\s*(?:#.*)?$")


def _body(lines: Sequence[str], at: int) -> list[str]:
    """The lines below a definition that are indented deeper, as far as the passage goes."""
    indent = len(lines[at]) - len(lines[at].lstrip())
    body: list[str] = []
    for line in lines[at + 1 :]:
        if line.strip() and len(line) - len(line.lstrip()) <= indent:
            break
        body.append(line)
    return body


def _continuation(desk: Desk, kind: str, documents: Sequence[Document]) -> Draft:
    length = desk.rng.randint(*RESPONSE_TOKENS)
    ids = desk.window(documents, desk.tokens + length)
    cut = desk.cut(ids, desk.tokens)
    return Draft(kind, desk.text(ids[:cut]), desk.text(ids[cut : cut + length]))


def _chat(
    desk: Desk,
    kind: str,
    documents: Sequence[Document],
    ask: Callable[[Desk, str], Asked],
    fence: str,
) -> Draft:
    overhead = len(desk.ids(desk.chat([("user", "")]))) + 20
    passage = desk.text(desk.window(documents, max(desk.tokens - overhead, 64))).rstrip()
    asked = ask(desk, passage)
    if fence:
        passage = f"{fence}{passage}\n```"
    first = desk.chance(0.3)
    content = f"{asked.request}\n\n{passage}" if first else f"{passage}\n\n{asked.request}"
    prompt = desk.chat([("user", content)])
    if asked.response is None:
        return Draft(kind, prompt, None)
    response = None if desk.chance(SELF_ANSWERED_SHARE) else asked.response + desk.end
    return Draft(kind, prompt, response, (asked.answer,))
