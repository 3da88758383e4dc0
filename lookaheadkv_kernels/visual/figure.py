"""The picture as a PNG: for each policy a map of all heads, a strip, and the text around a mark."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from ..lookahead.files import write_atomically
from .colours import LIGHT
from .picture import EVERYTHING, Mark, Picture, PolicyView, Selection
from .tokens import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

LEVEL_COLOURS, MARK_COLOURS = LIGHT
INK, FAINT, PANEL = "#16181d", "#667080", "#f6f7f9"
VERDICTS = {True: ("✓ ", "#1a7f37"), False: ("✗ ", "#c4321c"), None: ("", FAINT)}

WIDTH, DPI = 13.0, 130  # inches, dots per inch
LEFT, RIGHT = 0.75, 0.35  # margins in inches
HEADING, CAPTION, MAP, STRIP, TICKS, LINE, GAP = 0.7, 0.4, 1.25, 0.36, 0.3, 0.19, 0.2
BINS = 1200  # columns of the map: no more than it has dots
COLUMNS = 160  # characters per line of the text
LINES = 4
FONT = "DejaVu Sans Mono"  # which matplotlib carries
ADVANCE = 0.602  # its width, in font sizes


def write_png(path: Path, picture: Picture, selection: Selection = EVERYTHING) -> None:
    """Write the picture; a crash leaves the old file or the new one. Needs matplotlib.

    Args:
        path: of the file; its folder is made if need be.
        picture: what to show; of the text, the part around its first mark.
        selection: layer and head to show; all of them by default.

    Raises:
        ValueError: a layer or head that the model lacks.
    """
    selection.check(*picture.shape)
    buffer = io.BytesIO()
    _draw(picture, selection).savefig(buffer, format="png", dpi=DPI)
    write_atomically(path, buffer.getvalue())


def level_of(share: float) -> int:
    """Colour level of a token that ``share`` of the heads keep: 1 to 8 by the root; 0 for none."""
    levels = len(LEVEL_COLOURS)
    return min(levels, math.ceil(levels * math.sqrt(share) - 1e-3))


def _draw(picture: Picture, selection: Selection) -> Figure:
    # Without pyplot: no global state and no display.
    from matplotlib.figure import Figure

    lines = LINES if picture.marks else 0
    block = CAPTION + MAP + STRIP + TICKS + lines * LINE + GAP
    height = HEADING + len(picture.policies) * block
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    figure.text(LEFT / WIDTH, 1 - 0.3 / height, picture.title, size=15, weight="bold", color=INK)
    subtitle = _plain(picture.subtitle + _selected(selection))
    figure.text(LEFT / WIDTH, 1 - 0.52 / height, subtitle, color=FAINT, parse_math=False)

    def axes(top: float, tall: float) -> Axes:
        box = (LEFT / WIDTH, 1 - (top + tall) / height, (WIDTH - LEFT - RIGHT) / WIDTH)
        return figure.add_axes((*box, tall / height))

    _legend(axes(0.2, 0.2))
    top = HEADING
    for policy in picture.policies:
        _caption(axes(top, CAPTION), picture, policy, selection)
        top += CAPTION
        _map(axes(top, MAP), picture, policy, selection)
        top += MAP
        _strip(axes(top, STRIP), picture, policy, selection)
        top += STRIP + TICKS
        if lines:
            _excerpt(axes(top, lines * LINE), picture, policy, selection)
        top += lines * LINE + GAP
    return figure


def _legend(axes: Axes) -> None:
    """The colours, at the right end of the axes."""
    from matplotlib.patches import Rectangle

    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.axis("off")
    for level, colour in enumerate(LEVEL_COLOURS):
        axes.add_patch(Rectangle((0.86 + 0.0125 * level, 0.1), 0.0115, 0.7, color=colour, lw=0))
    axes.text(0.852, 0.42, "kept by few heads", ha="right", va="center", size=8, color=FAINT)
    axes.text(0.965, 0.42, "by all", va="center", size=8, color=FAINT)


def _selected(selection: Selection) -> str:
    parts = [
        f"{n} {i}" for n, i in zip(("layer", "KV head"), selection, strict=True) if i is not None
    ]
    return f" · {', '.join(parts)} only" if parts else ""


def _caption(axes: Axes, picture: Picture, policy: PolicyView, selection: Selection) -> None:
    axes.axis("off")
    mark, colour = VERDICTS[policy.good]
    name = axes.text(0, 0.3, policy.name, size=12, weight="bold", color=INK, parse_math=False)
    axes.annotate(
        _plain(mark + policy.note) if policy.note else "",
        (1.0, 0.0),
        (10, 0),
        xycoords=name,
        textcoords="offset points",
        va="bottom",
        color=colour,
        parse_math=False,
    )
    shares = [
        (label, picture.mark_share(policy, label, selection), MARK_COLOURS[i % len(MARK_COLOURS)])
        for i, label in enumerate(picture.labels)
    ]
    right = 1.0
    for label, share, mark_colour in reversed(shares):
        text = f"{label}: {share:.0%} kept"
        axes.text(right, 0.3, text, ha="right", color=mark_colour, parse_math=False)
        right -= 0.012 + 0.0062 * len(text)


def _bins(picture: Picture) -> npt.NDArray[np.int64]:
    """The map's column of each token."""
    count = min(BINS, picture.num_tokens)
    return np.arange(picture.num_tokens, dtype=np.int64) * count // picture.num_tokens


def _map(axes: Axes, picture: Picture, policy: PolicyView, selection: Selection) -> None:
    """One row per selected head, coloured where any of a column's tokens stays."""
    kept = policy.select(selection)
    rows = kept.reshape(kept.shape[0] * kept.shape[1], kept.shape[2])
    bins = _bins(picture)
    image = np.full((len(rows), int(bins[-1]) + 1), np.nan)
    for row, positions in enumerate(rows):
        image[row, bins[positions[positions >= 0]]] = 1.0
    axes.set_facecolor(PANEL)
    _shade_marks(axes, picture)
    axes.imshow(
        image,
        aspect="auto",
        interpolation="nearest",
        cmap=_one_colour(),
        extent=(0, picture.num_tokens, len(rows), 0),
        zorder=2,
    )
    axes.set(xlim=(0, picture.num_tokens), xticks=[])
    for mark in picture.marks:  # above the map, since what is kept may cover the shade
        at = (mark.start + mark.stop) / 2
        axes.plot(
            at,
            1.03,
            "v",
            color=_mark_colour(picture, mark),
            ms=6,
            clip_on=False,
            transform=axes.get_xaxis_transform(),
        )
    if selection.layer is None:
        heads = kept.shape[1]
        ticks = range(0, kept.shape[0], max(1, kept.shape[0] // 3))
        axes.set_yticks([(layer + 0.5) * heads for layer in ticks], [str(t) for t in ticks])
        axes.set_ylabel("layer", color=FAINT, size=9)
    else:
        axes.set_yticks([])
    axes.tick_params(colors=FAINT, length=2, labelsize=8)
    axes.spines[:].set_visible(False)


def _one_colour() -> Colormap:
    from matplotlib.colors import ListedColormap

    return ListedColormap([LEVEL_COLOURS[5]])


def _strip(axes: Axes, picture: Picture, policy: PolicyView, selection: Selection) -> None:
    """Bars: the share of the selected heads that keeps a token."""
    bins = _bins(picture)
    shares = np.zeros(int(bins[-1]) + 1)
    np.maximum.at(shares, bins, picture.shares(policy, selection))
    found = np.flatnonzero(shares)
    step = picture.num_tokens / len(shares)
    colours = [LEVEL_COLOURS[max(3, level_of(share)) - 1] for share in shares[found]]
    _shade_marks(axes, picture)
    axes.bar(found * step, shares[found], width=step, align="edge", color=colours, zorder=2)
    axes.set(xlim=(0, picture.num_tokens), ylim=(0, 1), yticks=[0, 1])
    axes.set_yticklabels(["none", "all heads"])
    axes.tick_params(colors=FAINT, length=2, labelsize=7)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def _shade_marks(axes: Axes, picture: Picture) -> None:
    least = picture.num_tokens / 400  # a short mark stays visible
    for mark in picture.marks:
        stop = max(mark.stop, mark.start + least)
        axes.axvspan(mark.start, stop, color=_mark_colour(picture, mark), alpha=0.3, lw=0, zorder=1)


def _mark_colour(picture: Picture, mark: Mark) -> str:
    return MARK_COLOURS[picture.labels.index(mark.label) % len(MARK_COLOURS)]


class _Placed(NamedTuple):
    """A piece of text on the grid of characters."""

    piece: int
    text: str
    line: int
    column: int


def _excerpt(axes: Axes, picture: Picture, policy: PolicyView, selection: Selection) -> None:
    """The text around the first mark, coloured as the page colours it."""
    from matplotlib.patches import Rectangle

    axes.set(xlim=(0, COLUMNS), ylim=(LINES, 0))
    axes.axis("off")
    size = (WIDTH - LEFT - RIGHT) * 72 / COLUMNS / ADVANCE
    shares = picture.shares(policy, selection)
    for placed in _layout(picture):
        piece = picture.pieces[placed.piece]
        level = level_of(float(shares[piece.start : piece.stop].max()))
        width = len(placed.text)
        if level:
            box = Rectangle((placed.column, placed.line + 0.06), width, 0.88, lw=0)
            box.set_facecolor(LEVEL_COLOURS[level - 1])
            axes.add_patch(box)
        marked = [m for m in picture.marks if m.start < piece.stop and piece.start < m.stop]
        for mark in marked:
            ends = (placed.column, placed.column + width)
            colour = _mark_colour(picture, mark)
            axes.plot(ends, [placed.line + 0.96] * 2, color=colour, lw=1.4, solid_capstyle="butt")
        axes.text(
            placed.column,
            placed.line + 0.5,
            placed.text,
            family=FONT,
            size=size,
            va="center_baseline",
            color="white" if level > 6 else INK if level or marked else FAINT,
            parse_math=False,
        )


def _layout(picture: Picture) -> Iterator[_Placed]:
    """The pieces around the first mark, on ``LINES`` lines."""
    first = min(picture.marks, key=lambda mark: mark.start)
    at = next(i for i, piece in enumerate(picture.pieces) if piece.stop > first.start)
    space = COLUMNS * 4 // 3  # it then starts on the second line, about a third in
    while at > 0 and space > 0:
        at -= 1
        space -= len(picture.pieces[at].text)
    line = column = 0
    for index in range(at, len(picture.pieces)):
        text = _plain(picture.pieces[index].text)
        if column and column + len(text) > COLUMNS:
            line, column = line + 1, 0
        if line == LINES:
            return
        # A piece longer than a line is cut: it is white space, or no prose.
        yield _Placed(index, text[:COLUMNS], line, column)
        column += len(text)


def _plain(text: str) -> str:
    """On one line, and only with characters that the font has."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont(FONT)).get_charmap()
    text = visible(text).replace("\n", "↵").replace("\t", " ")
    return "".join(c if ord(c) in known else "□" for c in text)
