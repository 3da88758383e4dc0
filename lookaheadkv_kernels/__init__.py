"""LookaheadKV kernels: score a prompt's KV cache with lookahead rows, evict what they do not need.

Importing the package loads the compiled op library, which registers ``torch.ops.lookaheadkv``;
the functions below are thin forwards to those ops.
"""

from . import _library

_library.load()

# The rest needs the registered ops; the first adds fake kernels and gradients to them.
from . import _autograd  # noqa: E402, F401
from ._version import __version__  # noqa: E402
from .backend import (  # noqa: E402
    available_backends,
    backend_for,
    check_environment,
    register_kernels,
    set_backend,
)
from .ops import (  # noqa: E402
    Attention,
    Evicted,
    KeyValue,
    column_scores,
    gather_kv,
    lookahead_attention,
    prefill_attention,
    score_and_evict,
    select,
)
from .paged import (  # noqa: E402
    Kept,
    Selected,
    compact_kv_cache,
    kept_length,
    paged_column_scores,
    paged_score_and_select,
    paged_score_and_select_out,
    paged_select,
)

__all__ = [
    "Attention",
    "Evicted",
    "Kept",
    "KeyValue",
    "Selected",
    "__version__",
    "available_backends",
    "backend_for",
    "column_scores",
    "compact_kv_cache",
    "gather_kv",
    "kept_length",
    "lookahead_attention",
    "paged_column_scores",
    "paged_score_and_select",
    "paged_score_and_select_out",
    "paged_select",
    "prefill_attention",
    "score_and_evict",
    "select",
    "set_backend",
]

check_environment()
register_kernels()
