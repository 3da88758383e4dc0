"""SpecKV (Galim et al., 2025): a smaller model's draft of the answer says what will be needed."""

from __future__ import annotations

from typing import Any, ClassVar

from ..ops import column_scores
from .base import Budget, Kept, LayerCall, Policy, check_at_least
from .scoring import keep_best_and_window


class SpecKV(Policy):
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

    def __init__(
        self, draft_model: Any, *, window: int = 32, draft_tokens: int = 32, pool_kernel: int = 7
    ) -> None:
        check_at_least("window", window, 0)
        check_at_least("draft_tokens", draft_tokens, 1)
        self.draft_model = draft_model
        self.window = window
        self.draft_tokens = draft_tokens
        self.pool_kernel = pool_kernel

    def evict(self, call: LayerCall) -> Kept:
        """The newest ``call.state`` rows and entries are the draft, before them is the window."""
        rows = call.query.shape[2]
        prompt = call.key.shape[2] - call.state
        window = rows - call.state
        scores = column_scores(call.query, call.key, scale=call.scale)
        return keep_best_and_window(call, self.name, scores, prompt, window, self.pool_kernel)

    def prefill(self, runner: Any, prompt: Any, budget: Budget, cache: Any) -> Any:
        """Prefill, draft, run the draft behind the prompt: row by row.

        Raises:
            ValueError: a later turn; a prompt of embeddings; a draft model of other tokens.
        """
        if cache is not None and cache.layers:
            raise ValueError(f"policy {self.name!r}: later turns are not supported")

        def finish(reading: Any) -> None:
            draft = reading.answer_of(self.draft_model, self.draft_tokens, self.name)
            reading.cut_behind(self, budget, self.window, draft)

        return runner.row_by_row(self, prompt, cache, finish)
