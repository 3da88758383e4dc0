"""Which piece of the prompt's text belongs to which tokens."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Tokens of one run that may be joined: a character has up to four bytes, and byte-level tokens may
# begin in the middle of one character and end in the middle of the next.
MOST_JOINED = 16
# Format characters that turn the direction of the text after them, and line breaks that no editor
# shows as such.
HIDDEN = {*range(0x200E, 0x2010), *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0x61C, 0xFEFF}


class Piece(NamedTuple):
    """A stretch of text, and the tokens ``start`` to ``stop`` - 1 that spell it.

    Mostly one token; several where they hold one character's bytes together.
    """

    text: str
    start: int
    stop: int


def split_pieces(tokenizer: Any, ids: Sequence[int]) -> list[Piece]:
    """Cut a prompt into the text of its tokens; the pieces joined are the decoded prompt.

    Args:
        tokenizer: of transformers; only its ``decode`` is used.
        ids: the prompt's token ids, special tokens included (they are shown).
    """

    def decode(start: int, stop: int) -> str:
        return str(
            tokenizer.decode(
                list(ids[start:stop]),
                skip_special_tokens=False,
                clean_up_tokenization_spaces=False,
            )
        )

    pieces: list[Piece] = []
    start = 0  # of the piece that is being collected
    before_start, before = 0, ""  # the piece before it: sentencepiece trims the first word's space
    for stop in range(1, len(ids) + 1):
        text = decode(before_start, stop)
        unfinished = text.endswith(REPLACEMENT) and stop - start < MOST_JOINED
        if unfinished and stop < len(ids):
            continue
        pieces.append(Piece(text[len(before) :], start, stop))
        if text.endswith(
            REPLACEMENT
        ):  # bytes that are no text: do not let them change what follows
            before_start, before = stop, ""
        else:
            before_start, before = start, decode(start, stop)
        start = stop
    return pieces


def visible(text: str) -> str:
    """The text with control characters made visible, such that it cannot change the page around it.

    Line feeds and tabs stay. Others show as control pictures (``␀``) or, where there is none, as
    ``[U+202E]``.
    """
    return "".join(character if _is_plain(character) else _shown(character) for character in text)


def _is_plain(character: str) -> bool:
    if character in "\n\t":
        return True
    return unicodedata.category(character) not in ("Cc", "Cs") and ord(character) not in HIDDEN


def _shown(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else f"[U+{code:04X}]"
