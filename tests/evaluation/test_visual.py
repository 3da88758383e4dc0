"""Pictures of what stays: text by tokens, hostile prompts, packed data, the page and the PNG."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lookaheadkv_kernels.visual import (
    Mark,
    Picture,
    Piece,
    PolicyView,
    Selection,
    find_mark,
    split_pieces,
    write_html,
    write_png,
)
from lookaheadkv_kernels.visual import figure as figure_module
from lookaheadkv_kernels.visual.colours import style_sheet
from lookaheadkv_kernels.visual.figure import level_of
from lookaheadkv_kernels.visual.pack import NO_SCORE, pack_policy, quantise
from lookaheadkv_kernels.visual.page import ASSETS, render_html
from lookaheadkv_kernels.visual.tokens import visible

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = (
    "</script><script>alert(1)</script><!-- & &amp; \"quoted\" 'single' {{data}} $x^2$\n\n\ttab\r\n"
    "\x00\x07\x1b[31m\x7f\x85 \u202eevil\u2066 \u2028 naïve 日本語 🦩👩\u200d👩\u200d👧 \ufeff end"
)


class ByteTokenizer:
    """A token a byte, or any other way of cutting the text's bytes."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = tokens

    def decode(self, ids: list[int], **options: Any) -> str:
        assert options == {
            "skip_special_tokens": False,
            "clean_up_tokenization_spaces": False,
        }
        return b"".join(self.tokens[i] for i in ids).decode("utf-8", errors="replace")


def byte_tokens(text: str, *sizes: int) -> tuple[ByteTokenizer, list[int]]:
    """The text's bytes, cut into tokens of these sizes over and over."""
    data, tokens = text.encode(), []
    while data:
        size = sizes[len(tokens) % len(sizes)]
        tokens.append(data[:size])
        data = data[size:]
    return ByteTokenizer(tokens), list(range(len(tokens)))


class SentencePieces:
    """Like sentencepiece: words carry their space, and decoding trims the first one's."""

    def decode(self, ids: list[int], **options: Any) -> str:
        words = ["▁once", "▁upon", "▁a", "▁time", "!"]
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")


def view(name: str = "SnapKV", *, layers: int = 3, heads: int = 2, last: int = 40) -> PolicyView:
    positions = np.tile(np.array([0, 3, 4, last - 1, -1], dtype=np.int32), (layers, heads, 1))
    positions[1, 1] = [3, 5, 6, 7, 8]
    scores = np.where(positions >= 0, 0.25, np.nan).astype(np.float32)
    return PolicyView(name, positions, scores)


def picture_of(text: str, *policies: PolicyView, marks: Sequence[Mark] = ()) -> Picture:
    tokenizer, ids = byte_tokens(text, 1)
    pieces = split_pieces(tokenizer, ids)
    return Picture(pieces, policies or (view(last=len(ids)),), marks)


class Reader(HTMLParser):
    """Reads a page as a browser would: the text's pieces, the data, and every element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.pieces: list[str] = []
        self.counts: list[int] = []
        self.marked: list[str] = []
        self.data = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "link", "input"):
            self.stack.append(tag)
        if tag == "i":
            self.pieces.append("")
            self.counts.append(int(dict(attrs).get("data-n") or 1))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if "i" in self.stack and self.stack[-1] != "b":
            self.pieces[-1] += data
            if "mark" in self.stack:
                self.marked.append(data)
        if self.stack and self.stack[-1] == "script" and not self.data:
            self.data = data


# --- text ---


@pytest.mark.parametrize("sizes", [(1,), (2,), (3,), (5, 1), (1, 4, 2)])
def test_pieces_spell_the_prompt_without_replacement_characters(sizes: tuple[int, ...]) -> None:
    tokenizer, ids = byte_tokens(HOSTILE, *sizes)
    pieces = split_pieces(tokenizer, ids)
    assert "".join(piece.text for piece in pieces) == HOSTILE
    assert [piece.start for piece in pieces[1:]] == [piece.stop for piece in pieces[:-1]]
    assert (pieces[0].start, pieces[-1].stop) == (0, len(ids))


def test_only_split_characters_are_joined() -> None:
    tokenizer, ids = byte_tokens("a🦩é", 1)
    assert split_pieces(tokenizer, ids) == [Piece("a", 0, 1), Piece("🦩", 1, 5), Piece("é", 5, 7)]


def test_bytes_that_are_no_text_do_not_swallow_the_prompt() -> None:
    tokenizer = ByteTokenizer([b"\xff"] * 40 + [b" then", b" text"])
    pieces = split_pieces(tokenizer, range(42))
    assert pieces[-1].text == " text"
    assert pieces[-1].stop == 42
    assert "".join(piece.text for piece in pieces).endswith(" then text")


def test_spaces_of_sentencepiece_stay() -> None:
    pieces = split_pieces(SentencePieces(), range(5))
    assert [piece.text for piece in pieces] == ["once", " upon", " a", " time", "!"]


def test_control_characters_become_visible() -> None:
    assert visible("a\x00\x1b\x7f\x85\u202e\u2028\n\tz") == "a␀␛␡[U+0085][U+202E][U+2028]\n\tz"
    assert visible("👩\u200d👧 日本語 é") == "👩\u200d👧 日本語 é"


def test_marks_are_found_by_their_text() -> None:
    tokenizer, ids = byte_tokens("The café is 🦩 pink.", 2)
    pieces = split_pieces(tokenizer, ids)
    mark = find_mark("needle", pieces, "🦩 pink")
    text = "".join(p.text for p in pieces if mark.start <= p.start < mark.stop)
    assert "🦩 pink" in text
    assert len(text) <= len("🦩 pink") + 2
    for missing in ("blue", ""):
        with pytest.raises(ValueError, match="does not contain"):
            find_mark("needle", pieces, missing)


# --- what was kept ---


def test_view_from_the_choices_of_a_cache() -> None:
    """Heads and layers of different lengths, and entries behind the scores (SnapKV's window)."""
    scores = torch.rand(2, 2, 6)
    choices = [
        SimpleNamespace(positions=torch.tensor([[[2, 5, 7], [4, 6, -1]]] * 2), scores=scores),
        SimpleNamespace(positions=torch.tensor([[[1], [3]]] * 2), scores=scores),
    ]
    found = PolicyView.from_choices("x", choices, row=1)
    assert found.positions.tolist() == [[[2, 5, 7], [4, 6, -1]], [[1, -1, -1], [3, -1, -1]]]
    assert found.scores is not None
    np.testing.assert_allclose(
        found.scores[0],
        [[scores[1, 0, 2], scores[1, 0, 5], np.nan], [scores[1, 1, 4]] + [np.nan] * 2],
    )
    without = [SimpleNamespace(positions=torch.tensor([[[1]]]), scores=None)]
    assert PolicyView.from_choices("x", without).scores is None


def test_shares_count_the_selected_heads() -> None:
    picture = picture_of("x" * 40, marks=[Mark("needle", 3, 5)])
    policy = picture.policies[0]
    everything = picture.shares(policy, Selection())
    assert everything[3] == 1
    assert everything[4] == pytest.approx(5 / 6)
    assert everything[8] == pytest.approx(1 / 6)
    assert picture.shares(policy, Selection(1, 1))[8] == 1
    assert picture.shares(policy, Selection(layer=1))[8] == 0.5
    assert picture.shares(policy, Selection(head=0))[8] == 0
    assert picture.mark_share(policy, "needle", Selection()) == pytest.approx(11 / 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policies": []}, "at least one policy"),
        ({"policies": [view(), view("H2O", layers=2)]}, r"H2O: \[layers, heads\] are \[2, 2\]"),
        ({"policies": [view(last=41)]}, "kept position 40 of a prompt of 40"),
        ({"marks": [Mark("a", 3, 3)]}, "is empty"),
        ({"marks": [Mark("a", 3, 8), Mark("b", 7, 9)]}, "overlaps"),
        ({"marks": [Mark("a", 38, 41)]}, "outside the prompt"),
    ],
)
def test_what_cannot_be_pictured_is_refused(change: dict[str, Any], message: str) -> None:
    pieces = [Piece("x", i, i + 1) for i in range(40)]
    with pytest.raises(ValueError, match=message):
        Picture(**{"pieces": pieces, "policies": [view()], **change})


@pytest.mark.parametrize("selection", [Selection(3), Selection(head=2), Selection(layer=-1)])
def test_a_layer_or_head_that_is_not_there_is_refused(selection: Selection, tmp_path: Path) -> None:
    for write in (write_html, write_png):
        with pytest.raises(ValueError, match=r"(layer|head) must be in 0\.\.[12], got"):
            write(tmp_path / "picture", picture_of("x" * 40), selection)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("num_tokens", "dtype"), [(40, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_packed_positions_are_the_kept_ones(num_tokens: int, dtype: str) -> None:
    policy = view(last=num_tokens)
    packed = pack_policy(policy, num_tokens)
    assert packed["counts"] == [4, 4, 4, 5, 4, 4]
    unpacked = np.frombuffer(base64.b64decode(packed["positions"]), dtype)
    assert unpacked.tolist() == policy.positions[policy.positions >= 0].tolist()
    assert len(base64.b64decode(packed["scores"])) == len(unpacked)


def test_scores_are_a_byte_each_within_five_percent() -> None:
    scores = np.array([1.0, 0.3, 1e-6, 0.0, -1.0, np.nan], dtype=np.float32)
    assert quantise(scores).tolist()[3:] == [254, 254, NO_SCORE]
    np.testing.assert_allclose(2.0 ** (quantise(scores)[:3] / -8.0), scores[:3], rtol=0.05)


# --- the page ---


def test_page_shows_every_token_of_a_hostile_prompt_and_nothing_else() -> None:
    plain = Reader(render_html(picture_of("harmless text of forty characters or so.")))
    picture = picture_of(HOSTILE)
    page = Reader(render_html(picture))
    assert page.stack == []
    assert page.tags.count("script") == 2
    assert set(page.tags) - {"b"} == set(plain.tags)
    assert page.pieces == [visible(piece.text) for piece in picture.pieces]
    assert sum(page.counts) == picture.num_tokens
    assert "\ufffd" not in "".join(page.pieces)
    assert json.loads(page.data)["tokens"] == picture.num_tokens


def test_page_is_one_file_that_fetches_nothing() -> None:
    page = render_html(picture_of("x" * 40))
    assert "default-src 'none'" in page
    assert not re.search(r"(?:https?:)?//[a-z]|\bimport\b|@import|fetch\(|\burl\(", page)


def test_names_notes_and_headings_are_escaped() -> None:
    nasty = '</script><b onclick="x">&'
    policy = view(nasty)
    policy = PolicyView(nasty, policy.positions, note=nasty, good=False)
    base = picture_of("x" * 40)
    page = render_html(
        Picture(base.pieces, [policy], [Mark(nasty, 3, 5)], title=nasty, subtitle=nasty)
    )
    assert nasty not in page
    assert html.escape(nasty) in page
    reader = Reader(page)
    assert reader.tags.count("script") == 2
    assert json.loads(reader.data)["policies"][0]["name"] == nasty


def test_page_marks_needle_and_question() -> None:
    text = "Some text. The parrot is Ruby. More text. Who is the parrot?"
    tokenizer, ids = byte_tokens(text, 3)
    pieces = split_pieces(tokenizer, ids)
    marks = [Mark("question", 14, 20), find_mark("needle", pieces, "parrot is Ruby")]
    picture = Picture(pieces, [view(last=20)], marks)
    assert picture.labels == ["needle", "question"]
    reader = Reader(render_html(picture))
    assert reader.tags.count("mark") == 2
    assert "parrot is Ruby" in "".join(reader.marked)
    assert [mark["colour"] for mark in json.loads(reader.data)["marks"]] == [1, 0]


def test_page_opens_with_the_selection() -> None:
    page = render_html(picture_of("x" * 40), Selection(2, 1))
    assert '<option value="2" selected>layer 2</option>' in page
    assert '<option value="1" selected>KV head 1</option>' in page


def test_long_prompts_make_small_pages() -> None:
    """8,192 tokens, three policies, 32 layers of 8 heads, budget 128: as Llama-3.1-8B has it."""
    pieces = [Piece(" word", i, i + 1) for i in range(8192)]
    rng = np.random.default_rng(0)
    kept = np.sort(rng.integers(0, 8192, (32, 8, 128), dtype=np.int32), axis=2)
    policies = [PolicyView(name, kept, np.full(kept.shape, 0.1, np.float32)) for name in "abc"]
    assert len(render_html(Picture(pieces, policies))) < 700_000


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_script_parses() -> None:
    subprocess.run(["node", "--check", str(ASSETS / "page.js")], check=True)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_colours_what_python_counts(tmp_path: Path) -> None:
    """The script unpacks the data: every token of every column gets the colour of its share."""
    text = "The café is 🦩 pink, they say, and so is all of it."
    tokenizer, ids = byte_tokens(text, 1)
    policies = [view("one", last=len(ids)), view("two", last=20)]
    picture = Picture(split_pieces(tokenizer, ids), policies, [Mark("needle", 3, 9)])
    for selection in (Selection(), Selection(1), Selection(1, 1)):
        path = tmp_path / "picture.html"
        write_html(path, picture, selection)
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/p"]
        dumped = subprocess.run(
            [str(CHROMIUM), *options, "--dump-dom", path.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        columns = dumped.split("<section")[1:]
        for policy, column in zip(policies, columns, strict=True):
            shares = picture.shares(policy, selection)
            expected = [level_of(shares[p.start : p.stop].max()) for p in picture.pieces]
            found = re.findall(r"<i\b([^>]*)>", column.split("</section>")[0])
            levels = [int((re.findall(r"\bk(\d)", attributes) or [0])[0]) for attributes in found]
            assert levels == expected


def test_both_pictures_have_the_same_colours() -> None:
    light, dark = style_sheet().split("@media")
    for name, colours in (
        ("k", enumerate(figure_module.LEVEL_COLOURS, start=1)),
        ("m", enumerate(figure_module.MARK_COLOURS)),
    ):
        for index, colour in colours:
            assert f"--{name}{index}: {colour};" in light
            assert f"--{name}{index}: #" in dark


def test_levels_go_by_the_root_of_the_share() -> None:
    assert [level_of(share) for share in (0, 1 / 90, 1 / 64, 0.02, 0.25, 0.26, 1)] == [
        0, 1, 1, 2, 4, 5, 8,
    ]  # fmt: skip


# --- files ---


@pytest.mark.parametrize("selection", [Selection(), Selection(1), Selection(1, 1)])
def test_png_is_drawn_without_warnings(
    selection: Selection, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    pytest.importorskip("matplotlib")
    tokenizer, ids = byte_tokens(HOSTILE * 4, 1)
    pieces = split_pieces(tokenizer, ids)
    policies = [view("$x_1$ <b>", last=len(ids)), PolicyView("none", view().positions[..., :0])]
    picture = Picture(pieces, policies, [Mark("needle", 60, 70), Mark("question", 300, 320)])
    path = tmp_path / "new folder" / "picture.png"
    write_png(path, picture, selection)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [str(w.message) for w in recwarn] == []


def test_files_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.html"
    path.write_text("old")

    def fail(*args: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_html(path, picture_of("x" * 40))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
