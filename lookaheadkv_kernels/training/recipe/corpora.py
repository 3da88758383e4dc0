"""English prose and Python code from installed packages: nothing is downloaded or shipped."""

from __future__ import annotations

import gzip
import html
import json
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

from ...lookahead.files import sync
from .words import split_of

HANDBOOK = Path("/usr/share/doc/debian-handbook/html/en-US")
PYTHON_DOCS = Path("/usr/share/doc")  # python3.*/html/_sources below it
MIN_CHARACTERS = 2000
MAX_CHARACTERS = 400_000
FORMAT = 1


class Document(NamedTuple):
    """A text and where it is from; the name alone decides its split."""

    name: str
    text: str

    @property
    def split(self) -> str:
        """``train`` or ``heldout``."""
        return split_of(self.name)


class Corpora(NamedTuple):
    """All documents, sorted by name."""

    prose: tuple[Document, ...]
    code: tuple[Document, ...]

    def of_split(self, split: str) -> Corpora:
        """Only the documents of ``train`` or of ``heldout``."""
        return Corpora(
            tuple(d for d in self.prose if d.split == split),
            tuple(d for d in self.code if d.split == split),
        )


@cache
def find_texts() -> Corpora:
    """Prose and code from this machine; what a machine lacks is left out.

    Prose: Python's manual, the Debian Administrator's Handbook and the King James Bible (Debian
    packages ``python3.11-doc``, ``debian-handbook``, ``bible-kjv``); without the manual, the
    language reference that every Python carries. Code: the standard library, without its tests.
    """
    manual = list(_python_manual()) or list(_language_reference())  # one is part of the other
    prose = [*manual, *_handbook(), *_bible()]
    return Corpora(_usable(prose), _usable(_standard_library()))


def write_corpora(path: Path, corpora: Corpora) -> None:
    """Keep the texts in one file: samples depend on them, and machines differ in theirs."""
    record = {"format": FORMAT, "prose": corpora.prose, "code": corpora.code}
    partial = path.with_name(path.name + ".partial")
    with gzip.open(partial, "wt", encoding="utf-8", compresslevel=6) as file:
        json.dump(record, file)
    sync(partial)
    os.replace(partial, path)


def read_corpora(path: Path) -> Corpora:
    """The texts that `write_corpora` kept; ``ValueError`` for another kind of file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        record = json.load(file)
    if record.get("format") != FORMAT:
        raise ValueError(f"{path} holds no texts of format {FORMAT}")
    prose, code = (tuple(Document(*pair) for pair in record[key]) for key in ("prose", "code"))
    return Corpora(prose, code)


def _usable(documents: Iterable[Document]) -> tuple[Document, ...]:
    """Sorted; without short texts and without those that spell a model's special tokens."""
    return tuple(
        Document(d.name, d.text[:MAX_CHARACTERS])
        for d in sorted(documents)
        if len(d.text) >= MIN_CHARACTERS and "<|" not in d.text
    )


def _language_reference() -> Iterator[Document]:
    for name, text in topics.items():
        yield Document(f"topics/{name}", _strip_rst(text))


def _python_manual() -> Iterator[Document]:
    for folder in sorted(PYTHON_DOCS.glob("python3.*/html/_sources"))[:1]:
        yield from _files(folder, "*.rst.txt", "manual", _strip_rst)


def _handbook() -> Iterator[Document]:
    return _files(HANDBOOK, "*.html", "handbook", _strip_html)


def _standard_library() -> Iterator[Document]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data"}
    for document in _files(folder, "*.py", "stdlib", str):
        if not left_out & set(document.name.split("/")):
            yield document


def _files(
    folder: Path, pattern: str, source: str, clean: Callable[[str], str]
) -> Iterator[Document]:
    for path in sorted(folder.rglob(pattern)):
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        yield Document(f"{source}/{path.relative_to(folder).as_posix()}", clean(text))


def _bible() -> Iterator[Document]:
    """Ten chapters a document. The package keeps the text compressed, its reader prints it."""
    reader = shutil.which("bible")
    if reader is None:
        return
    command = [reader, "-f", "gen1:1-rev22:21"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts: dict[str, list[str]] = {}
    for line in lines.splitlines():
        if match := re.match(r"(\d?[A-Z][A-Za-z]+)(\d+):\d+ +(.*)", line):
            part = f"{match[1]}{int(match[2]) // 10}"
            parts.setdefault(part, []).append(match[3])
    for part, verses in parts.items():
        paragraphs = [" ".join(verses[i : i + 6]) for i in range(0, len(verses), 6)]
        yield Document(f"bible/{part}", "\n\n".join(paragraphs))


def _strip_html(text: str) -> str:
    text = re.sub(r"(?s)^.*<body.*?>|<ul class=\"docnav.*?</ul>|<pre.*?</pre>|<!--.*?-->", "", text)
    blocks = re.split(r"</?(?:div|p|h\d|li|ul|ol|dl|dt|dd|table|tr|td|th)\b[^>]*>", text)
    plain = (" ".join(html.unescape(re.sub(r"<[^>]*>", "", block)).split()) for block in blocks)
    return "\n\n".join(block for block in plain if len(block) > 40)


def _strip_rst(text: str) -> str:
    """Paragraphs of plain sentences; markup, listings, directives and headings go."""
    text = re.sub(r":[a-zA-Z:-]+:`[!~]?([^`<]*?)(?:\s*<[^`]*>)?`", r"\1", text)
    text = re.sub(r"`{1,2}([^`<]*?)(?:\s*<[^`]*>)?`{1,2}_{0,2}", r"\1", text)
    blocks = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    kept = (b for b in blocks if re.fullmatch(r"[A-Z*].{60,}[.:!?]", b) and "::" not in b)
    return "\n\n".join(block.replace("*", "") for block in kept)
