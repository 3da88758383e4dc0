"""The oracle: the true answer's own attention chooses. What a prediction can at best achieve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from .base import C, D, DraftingPolicy, Kept, LayerCall, P, Prefiller, Reading
from .budget import Budget, check_at_least


class Oracle(DraftingPolicy):
    """Mean attention of the answer's rows over [prompt; answer], Top-K; nothing is pinned.

    These are the ground-truth scores of paper section 2, which lookahead modules learn to predict,
    with the mean over the heads of a group. The answer is the model's own, greedy, from the full
    cache, unless one is given; it is dropped afterwards. Rows of a batch go one by one. In a later
    turn it answers from what earlier turns left.

    Args:
        max_tokens: longest answer.
        responses: token ids of the answer, one list for each row of the batch; None lets the model
            answer. Cut to ``max_tokens``.
        pool_kernel: window of the max-pool; 1: none, for these scores are no estimate.
    """

    name: ClassVar[str] = "oracle"

    def __init__(
        self,
        *,
        max_tokens: int = 128,
        responses: Sequence[Sequence[int]] | None = None,
        pool_kernel: int = 1,
    ) -> None:
        check_at_least("max_tokens", max_tokens, 1)
        if responses is not None and not all(len(response) for response in responses):
            raise ValueError("responses must not be empty")
        self.max_tokens = max_tokens
        self.responses = responses
        self.pool_kernel = pool_kernel

    def evict(self, call: LayerCall) -> Kept:
        """All of ``call.query`` is the answer, and so are that many newest entries."""
        return call.keep_best(call.query.shape[2], pool_kernel=self.pool_kernel)

    def prefill(
        self, prefiller: Prefiller[P, C, D], prompt: P, budget: Budget, cache: C | None
    ) -> D:
        """Prefill, answer, run the answer behind the prompt: row by row.

        Raises:
            ValueError: not one response for each row.
        """
        if self.responses is not None and len(self.responses) != prompt.batch:
            raise ValueError(
                f"policy {self.name!r}: {len(self.responses)} responses for a batch of "
                f"{prompt.batch}; give one a row"
            )
        return super().prefill(prefiller, prompt, budget, cache)

    def finish(self, reading: Reading, budget: Budget) -> None:
        """Answer, and run the answer behind the prompt."""
        if self.responses is None:
            answer = reading.answer(self.max_tokens)
        else:
            answer = list(self.responses[reading.row][: self.max_tokens])
        reading.cut_behind(self, budget, 0, answer)
