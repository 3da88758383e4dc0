"""Pictures of what eviction keeps: the prompt as text with the kept tokens coloured, and a PNG.

With ``lkv`` an eviction of ``integrations.transformers``, for one prompt ``ids`` [1, N]::

    lkv.runner.record = True
    cache = lkv.prefill(ids, budget=64)
    view = PolicyView.from_choices("LookaheadKV", cache.choices)
    write_html(Path("kept.html"), Picture(split_pieces(tokenizer, ids[0].tolist()), [view]))
"""

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
