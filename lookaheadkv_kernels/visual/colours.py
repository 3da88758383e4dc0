"""The colours that the page and the PNG share: of what is kept, and of what is marked."""

from __future__ import annotations

from typing import NamedTuple


class Colours(NamedTuple):
    """One form, light or dark.

    Attributes:
        levels: of kept tokens, from those that few heads keep to those that all keep.
        marks: of marked stretches of the prompt, by label; further labels begin anew.
    """

    levels: tuple[str, ...]
    marks: tuple[str, ...]

    def css(self) -> str:
        """As custom properties of a style sheet: ``--k1`` and so on, and ``--m0`` and so on."""
        named = [f"--k{i}: {colour};" for i, colour in enumerate(self.levels, start=1)]
        named += [f"--m{i}: {colour};" for i, colour in enumerate(self.marks)]
        return f":root {{ {' '.join(named)} }}"


LIGHT = Colours(
    ("#fff1c9", "#ffe29a", "#ffcf6b", "#ffb640", "#fb9420", "#ef7110", "#d44a0c", "#ad2408"),
    ("#0b7fab", "#7a3fd1", "#5f7a12"),
)
DARK = Colours(
    ("#33270f", "#4b3610", "#6a4810", "#8f5b0e", "#bb7410", "#e39420", "#ffb84d", "#ffdf9e"),
    ("#4cc3ee", "#bb96ff", "#b3d25a"),
)


def style_sheet() -> str:
    """Both forms, as the reader's system asks for."""
    return f"{LIGHT.css()}\n@media (prefers-color-scheme: dark) {{ {DARK.css()} }}\n"
