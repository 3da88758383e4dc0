"""The oracle: LookaheadKV in plain PyTorch, one short file per room.

attention -> scores -> select -> gather, then :func:`score_and_evict` for all four. Everything is
computed in float32, or in float64 when the inputs are float64, with the probabilities fully
materialised. Slow on purpose: this is what every kernel of the project is checked against.
"""

from .attention import attention_probabilities, lookahead_attention, prefill_attention
from .compact import compact_kv_cache
from .evict import Evicted, score_and_evict
from .gather import gather_kv
from .paged import paged_column_scores, paged_score_and_select, paged_select
from .scores import column_scores, column_scores_backward
from .select import max_pool, select

__all__ = [
    "Evicted",
    "attention_probabilities",
    "column_scores",
    "column_scores_backward",
    "compact_kv_cache",
    "gather_kv",
    "lookahead_attention",
    "max_pool",
    "paged_column_scores",
    "paged_score_and_select",
    "paged_select",
    "prefill_attention",
    "score_and_evict",
    "select",
]
