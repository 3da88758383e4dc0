"""Chat prompts for a model, and greedy answers from an evicted or full cache."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from lookaheadkv_kernels.integrations.transformers import EvictableCache
from lookaheadkv_kernels.integrations.transformers.compat import cache_argument


@dataclass
class Answer:
    """What the model said, and how fast it decoded."""

    text: str  # up to the first line break: this model seldom ends its turn by itself
    tokens_per_second: float


@dataclass(frozen=True)
class Chat:
    """A causal language model with its tokenizer."""

    model: Any
    tokenizer: Any

    @property
    def max_tokens(self) -> int:
        """The model's context length."""
        return int(self.model.config.max_position_embeddings)

    def count_tokens(self, text: str) -> int:
        """Tokens of a piece of text."""
        return len(self.tokenizer(text).input_ids)

    def ids(self, user_message: str) -> list[int]:
        """Token ids of a chat: one user turn, and the head of the assistant's."""
        chat = [{"role": "user", "content": user_message}]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(text).input_ids)

    def answer(
        self, ids: list[int], cache: EvictableCache, answer_start: str, max_new_tokens: int
    ) -> Answer:
        """Continue greedily after the prompt ``ids`` and ``answer_start``.

        Args:
            ids: of the prompt.
            cache: what is left of the prompt; it grows.
            answer_start: words put into the model's mouth. They are read after the eviction, so
                that no word of the answer was chosen with more than is left.
            max_new_tokens: of the answer.
        """
        prompt = torch.tensor([[*ids, *self.tokenizer(answer_start).input_ids]])
        start = perf_counter()
        sequence = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            **{cache_argument(self.model): cache},
        )
        seconds = perf_counter() - start
        new = sequence[0, prompt.shape[1] :]
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        return Answer(text.strip().partition("\n")[0], len(new) / seconds)
