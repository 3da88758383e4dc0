"""LAQ (Wang et al., 2025): a draft, written from a cut cache, chooses from the whole one."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..unmasked import unmasked_scores
from .base import DraftingPolicy, LayerCall, Reading
from .budget import Budget, check_at_least
from .scoring import ScorePolicy
from .snapkv import SnapKV


class LAQ(DraftingPolicy, ScorePolicy):
    """Lookahead queries: SnapKV, a greedy draft from what it left, then a second choice.

    The draft's queries and those of the last ``window`` prompt rows score all prompt keys alike,
    without a triangle and without the draft's own keys. Every draft token is fed once, the last
    one too, and leaves its query; the draft ends at the model's end token. Draft KV are dropped and
    the logits are the prompt's.

    Rows of a batch go one by one. In a later turn the draft starts from the whole conversation's
    cache, and old and new entries are chosen from alike.

    Args:
        window: newest prompt rows that score with the draft and always stay, inside the budget.
        draft_tokens: longest draft.
        draft_window: window of the SnapKV that the draft is written from, at the same budget.
        pool_kernel: window of the max-pool.
    """

    name: ClassVar[str] = "laq"

    def __init__(
        self,
        *,
        window: int = 8,
        draft_tokens: int = 32,
        draft_window: int = 32,
        pool_kernel: int = 7,
    ) -> None:
        check_at_least("window", window, 0)
        check_at_least("draft_tokens", draft_tokens, 1)
        self.window = max(window, draft_window)
        self.scoring_window = window
        self.draft_tokens = draft_tokens
        self.pool_kernel = pool_kernel
        self.first_choice = SnapKV(window=draft_window, pool_kernel=pool_kernel)

    def options(self) -> dict[str, object]:
        """``window`` is the scoring one: the attribute of that name has room for the draft's."""
        own = {"window": self.scoring_window, "draft_window": self.first_choice.window}
        return {**super().options(), **own}

    def score(self, call: LayerCall) -> Tensor:
        """The second choice; the window rows, which come first in ``call.query``, have no score."""
        window = call.query.shape[2] - call.num_draft
        scores = unmasked_scores(call.query, call.key, call.scale)
        return scores[:, :, : call.num_prompt - window]

    def finish(self, reading: Reading, budget: Budget) -> None:
        """Write the draft from a copy that SnapKV cut, then choose by its queries."""
        draft = reading.draft_queries(self.first_choice, budget, self.draft_tokens)
        reading.cut(self, budget, self.scoring_window, draft)
