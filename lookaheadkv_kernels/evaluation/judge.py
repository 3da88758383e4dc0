"""Judges of free answers: an OpenAI-compatible endpoint, or a local model."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..integrations.transformers.devices import input_device
from .task import encode_prompt

# Chat messages {role, content} -> what the judge says.
Judge = Callable[[Sequence[dict[str, str]]], str]

API_KEY_VARIABLE = "OPENAI_API_KEY"
ATTEMPTS = 3


class EndpointJudge:
    """A chat-completions endpoint.

    Args:
        url: up to and without ``/chat/completions``, e.g. ``http://127.0.0.1:8000/v1``.
        model: its name there.
        timeout: seconds for an answer.
        max_tokens: longest verdict.

    The key, if one is wanted, is taken from ``OPENAI_API_KEY``.

    Raises:
        ValueError: no HTTP address.
    """

    def __init__(
        self, url: str, model: str, *, timeout: float = 120.0, max_tokens: int = 2048
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the judge's address must be http(s)://..., got {url!r}")
        self._url = url.rstrip("/") + "/chat/completions"
        self.model = model
        self._timeout, self._max_tokens = timeout, max_tokens

    def check(self) -> None:
        """See that there is a server, before answers are written for it.

        Raises:
            ConnectionError: it cannot be reached.
        """
        url = self._url.removesuffix("/chat/completions") + "/models"
        try:
            urllib.request.urlopen(url, timeout=min(self._timeout, 10.0)).close()
        except urllib.error.HTTPError:
            return  # it answers, and need not have this page
        except (OSError, TimeoutError) as error:
            raise ConnectionError(f"{self._url}: {error}") from error

    def __call__(self, messages: Sequence[dict[str, str]]) -> str:
        """Ask the judge; a failing server is asked again.

        Raises:
            ValueError: it refused, or its answer is no completion.
            ConnectionError: it cannot be reached, or failed every time.
        """
        body = {
            "model": self.model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": self._max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(API_KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        problem: Exception | None = None
        for _ in range(ATTEMPTS):
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                    return _completion(self._url, answer.read())
            except urllib.error.HTTPError as error:
                if error.code < 500 and error.code != 429:
                    text = error.read().decode(errors="replace")[:200]
                    raise ValueError(f"{self._url}: {error.code} {text}") from error
                problem = error
            except (urllib.error.URLError, TimeoutError) as error:
                problem = error
        raise ConnectionError(f"{self._url}: {problem}") from problem


def _completion(url: str, answer: bytes) -> str:
    try:
        text = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        start = answer[:200].decode(errors="replace")
        raise ValueError(f"{url}: no chat completion: {start!r}") from error
    if not isinstance(text, str):
        raise ValueError(f"{url}: a chat completion without text: {text!r}")
    return text


class LocalJudge:
    """A transformers model as the judge.

    Args:
        model: in eval mode.
        tokenizer: its tokenizer, with a chat template.
        name: of the model.
        max_tokens: longest verdict.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, max_tokens: int = 512) -> None:
        self.model = name
        self._model, self._tokenizer, self._max_tokens = model, tokenizer, max_tokens

    def __call__(self, messages: Sequence[dict[str, str]]) -> str:
        """Ask the judge, which decodes greedily."""
        device = input_device(self._model)
        ids = torch.tensor([encode_prompt(self._tokenizer, messages)], device=device)
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self._max_tokens,
            do_sample=False,
        )
        verdict: str = self._tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        return verdict
