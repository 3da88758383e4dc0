"""SpecKV (Galim et al., 2025): a smaller model's draft of the answer says what will be needed."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from ..ops import column_scores
from .base import DraftingPolicy, LayerCall, Reading
from .budget import Budget, check_at_least
from .scoring import ScorePolicy


class SpecKV(DraftingPolicy, ScorePolicy):
    """Mean attention of the last ``window`` prompt rows and of a draft, max-pooled, Top-K.

    The draft model answers greedily; the target then runs prompt and draft, and the window's and
    the draft's rows score the prompt together. The window stays, the draft is dropped.

    Rows of a batch go one by one. The draft model has to read the whole text, of which a later
    turn no longer has the beginning: later turns are refused.

    Args:
        draft_model: any causal language model of transformers with the target's tokenizer.
        window: newest prompt rows that score with the draft and always stay, inside the budget.
        draft_tokens: longest draft.
        pool_kernel: window of the max-pool.
    """

    name: ClassVar[str] = "speckv"
    takes_turns: ClassVar[bool] = False

    def __init__(
        self,
        draft_model: nn.Module,
        *,
        window: int = 32,
        draft_tokens: int = 32,
        pool_kernel: int = 7,
    ) -> None:
        check_at_least("window", window, 0)
        check_at_least("draft_tokens", draft_tokens, 1)
        self.draft_model = draft_model
        self.window = window
        self.draft_tokens = draft_tokens
        self.pool_kernel = pool_kernel

    def score(self, call: LayerCall) -> Tensor:
        """Rows and entries end with the draft; the window before it has no score."""
        return column_scores(call.query, call.key, scale=call.scale)

    def finish(self, reading: Reading, budget: Budget) -> None:
        """Let the draft model answer, and run its draft behind the prompt.

        Raises:
            ValueError: a prompt of embeddings; a draft model with another tokenizer.
        """
        draft = reading.answer_of(self.draft_model, self.draft_tokens, self.name)
        reading.cut_behind(self, budget, self.window, draft)
