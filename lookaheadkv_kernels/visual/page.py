"""The picture as one HTML file that needs nothing else: no network, no library."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from ..lookahead.files import write_atomically
from .colours import LIGHT, style_sheet
from .pack import STEPS_PER_HALVING, is_wide, pack_policy
from .picture import EVERYTHING, Picture, PolicyView, Selection
from .tokens import Piece, visible

ASSETS = Path(__file__).parent / "assets"
MARK_COLOURS = len(LIGHT.marks)


def write_html(path: Path, picture: Picture, selection: Selection = EVERYTHING) -> None:
    """Write the page; a crash leaves the old file or the new one.

    Args:
        path: of the file; its folder is made if need be.
        picture: what to show.
        selection: layer and head that the page opens with; the reader can change them.

    Raises:
        ValueError: a layer or head that the model lacks.
    """
    write_atomically(path, render_html(picture, selection).encode())


def render_html(picture: Picture, selection: Selection = EVERYTHING) -> str:
    """The page as text; see :func:`write_html`."""
    selection.check(*picture.shape)
    layers, heads = picture.shape
    script_data = {
        "tokens": picture.num_tokens,
        "layers": layers,
        "heads": heads,
        "wide": is_wide(picture.num_tokens),
        "levels": len(LIGHT.levels),
        "stepsPerHalving": STEPS_PER_HALVING,
        "marks": [
            {**mark._asdict(), "colour": picture.labels.index(mark.label) % MARK_COLOURS}
            for mark in picture.marks
        ],
        "policies": [pack_policy(policy, picture.num_tokens) for policy in picture.policies],
    }
    return _filled(
        "page.html",
        title=escape(picture.title),
        subtitle=escape(picture.subtitle),
        style=style_sheet() + _asset("page.css"),
        script=_asset("page.js"),
        switches="\n".join(_switch(i, policy) for i, policy in enumerate(picture.policies)),
        jumps="\n".join(_jump(picture, label) for label in picture.labels),
        columns="\n".join(_column(i, policy, picture) for i, policy in enumerate(picture.policies)),
        layers=_options(layers, selection.layer, "all layers", "layer"),
        heads=_options(heads, selection.head, "all KV heads", "KV head"),
        data=_json_for_script(script_data),
    )


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _filled(asset: str, **values: str) -> str:
    """The asset with every ``{{name}}`` replaced; what is put in is never looked at again."""
    first, *parts = _asset(asset).split("{{")
    filled = [first]
    for part in parts:
        name, _, rest = part.partition("}}")
        filled += [values[name], rest]
    return "".join(filled)


def _json_for_script(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _switch(index: int, policy: PolicyView) -> str:
    name = escape(policy.name)
    return f'<label><input type="checkbox" checked data-policy="{index}">{name}</label>'


def _jump(picture: Picture, label: str) -> str:
    first = min(mark.start for mark in picture.marks if mark.label == label)
    colour = picture.labels.index(label) % MARK_COLOURS
    return f'<button type="button" class="m{colour}" data-to="{first}">{escape(label)}</button>'


def _options(count: int, chosen: int | None, everything: str, one: str) -> str:
    options = [f'<option value="-1">{everything}</option>']
    for index in range(count):
        selected = " selected" if index == chosen else ""
        options.append(f'<option value="{index}"{selected}>{one} {index}</option>')
    return "".join(options)


def _column(index: int, policy: PolicyView, picture: Picture) -> str:
    """One policy's section; only the first carries the text, the script copies it."""
    verdict = {True: "good", False: "bad", None: "neutral"}[policy.good]
    text = prompt_html(picture) if index == 0 else ""
    name = escape(policy.name)
    return (
        f'<section data-policy="{index}" aria-label="{name}">'
        f"<header><h2>{name}</h2>"
        f'<p class="note {verdict}">{escape(policy.note)}</p>'
        '<p class="facts"></p><canvas></canvas></header>'
        f'<div class="text" tabindex="0" role="group" aria-label="Prompt, {name}">{text}</div>'
        "</section>"
    )


def prompt_html(picture: Picture) -> str:
    """The prompt: an ``<i>`` for each piece of text, a ``<mark>`` around each marked stretch."""
    marks = sorted(picture.marks, key=lambda mark: mark.start)
    html: list[str] = []
    inside = None
    for piece in picture.pieces:
        here = next((m for m in marks if m.start < piece.stop and piece.start < m.stop), None)
        if here is not inside:
            if inside is not None:
                html.append("</mark>")
            if here is not None:
                colour = picture.labels.index(here.label) % MARK_COLOURS
                html.append(f'<mark class="m{colour}" title="{escape(here.label)}">')
            inside = here
        html.append(_piece_html(piece))
    if inside is not None:
        html.append("</mark>")
    return "".join(html)


def _piece_html(piece: Piece) -> str:
    """``data-n``: how many tokens spell it, where it is not one. Line feeds get a sign."""
    count = piece.stop - piece.start
    attribute = f' data-n="{count}"' if count != 1 else ""
    text = escape(visible(piece.text)).replace("\n", "<b>↵</b>\n")
    return f"<i{attribute}>{text}</i>"
