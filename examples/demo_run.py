"""The demo's run: one prefill of the long text, then every question from both caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import median
from time import perf_counter
from typing import TypeVar

import torch
from demo_cache import EvictableCache, Evicted
from demo_model import ChatModel, Prefilled
from demo_prompt import Needle, build_haystack
from demo_report import Asked, Run
from demo_verify import Agreement, check_layer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from bench.peers.eager import eager_score_and_evict

NUM_OBSERVATION = 32  # the last tokens of the prompt, whose attention scores the rest (SnapKV)
MAX_NEW_TOKENS = 12
TIMING_REPEATS = 5

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What the command line sets."""

    budget: int
    prompt_tokens: int
    questions: int
    seed: int


def timed(function: Callable[[], T], repeats: int = 1) -> tuple[T, float]:
    """The function's last result and its median time in seconds."""
    seconds = []
    for _ in range(repeats):
        start = perf_counter()
        result = function()
        seconds.append(perf_counter() - start)
    return result, median(seconds)


def common_prefix(sequences: Sequence[list[int]]) -> int:
    """How many tokens all sequences start with; at least one of each is left over."""
    same = takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False))
    return min(sum(1 for _ in same), *(len(sequence) - 1 for sequence in sequences))


def ask(model: ChatModel, needle: Needle, ids: list[int], prompt: Prefilled, budget: int) -> Asked:
    """Answer one question from the full and from the evicted cache, with all measurements."""
    layers = [
        (prompt.queries[index], layer.keys, layer.values)
        for index, layer in enumerate(prompt.cache.layers)
    ]

    def evict() -> tuple[EvictableCache, list[Evicted]]:
        cache = prompt.cache.fork()
        return cache, cache.evict(prompt.queries, budget)

    def evict_eagerly() -> list[Tensor]:
        # This code drops the observation entries, so it is asked for what ours chooses.
        return [eager_score_and_evict(*layer, budget - NUM_OBSERVATION)[2] for layer in layers]

    (cache, evicted), evict_seconds = timed(evict, TIMING_REPEATS)
    eager, eager_seconds = timed(evict_eagerly, TIMING_REPEATS)
    agreement = Agreement()
    for layer, ours, theirs in zip(layers, evicted, eager, strict=True):
        agreement += check_layer(*layer, ours, theirs, budget)
    return Asked(
        needle=needle,
        full_bytes=prompt.cache.nbytes(),
        evicted_bytes=cache.nbytes(),
        full=model.generate(ids, prompt.logits, prompt.cache.fork(), MAX_NEW_TOKENS),
        evicted=model.generate(ids, prompt.logits, cache, MAX_NEW_TOKENS),
        evict_seconds=evict_seconds,
        eager_seconds=eager_seconds,
        agreement=agreement,
    )


def load_model(dtype: torch.dtype, console: Console) -> ChatModel:
    """SmolLM2, with a line about how long that took."""
    with console.status("Loading SmolLM2-135M-Instruct"):
        model, seconds = timed(lambda: ChatModel(dtype, NUM_OBSERVATION))
    name = str(dtype).removeprefix("torch.")
    console.print(f"Loaded SmolLM2-135M-Instruct as {name} in {seconds:.1f} s")
    return model


def run_demo(model: ChatModel, options: Options, console: Console) -> Run:
    """Build the prompts, prefill what they share, then ask each question.

    ``ValueError`` for a prompt longer than the model reads, or one that cannot be built.
    """
    haystack = build_haystack(
        options.seed, options.prompt_tokens, options.questions, model.count_tokens
    )
    prompts = [
        model.chat_ids(haystack.user_message(needle), needle.answer_start)
        for needle in haystack.asked
    ]
    longest = max(map(len, prompts))
    if longest + MAX_NEW_TOKENS > model.max_tokens:
        raise ValueError(f"the prompt has {longest} tokens, the model reads {model.max_tokens}")

    shared = common_prefix(prompts)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        bar = progress.add_task("Prefill, tokens", total=shared)
        text, prefill_seconds = timed(
            lambda: model.prefill(
                prompts[0][:shared], progress=lambda tokens: progress.advance(bar, tokens)
            )
        )
        bar = progress.add_task("Questions", total=len(prompts))
        run = Run(longest, options.budget, prefill_seconds, shared)
        for needle, ids in zip(haystack.asked, prompts, strict=True):
            prompt = model.prefill(ids[shared:], after=text)
            run.asked.append(ask(model, needle, ids, prompt, options.budget))
            progress.advance(bar)
    return run
