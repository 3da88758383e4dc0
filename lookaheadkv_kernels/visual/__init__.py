"""Pictures of what eviction keeps: the prompt as text with the kept tokens coloured, and a PNG."""

from .figure import write_png
from .page import write_html
from .picture import Mark, Picture, PolicyView, Selection, find_mark
from .tokens import Piece, split_pieces

__all__ = [
    "Mark",
    "Picture",
    "Piece",
    "PolicyView",
    "Selection",
    "find_mark",
    "split_pieces",
    "write_html",
    "write_png",
]
