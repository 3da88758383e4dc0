"""The demo's run: one prefill of the long text, then every question under every policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from demo_chat import Answer, Chat
from demo_prompt import Haystack, Needle, build_haystack
from demo_verify import (
    Agreement,
    CheckedLookahead,
    CheckedSnapKV,
    CheckedStreamingLLM,
    Checks,
    timed,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lookaheadkv_kernels.integrations.transformers import EvictableCache, Eviction, LookaheadKV
from lookaheadkv_kernels.integrations.transformers.loading import load
from lookaheadkv_kernels.lookahead import LookaheadModules
from lookaheadkv_kernels.policies import FullCache, LookaheadPolicy, Policy, SnapKV, StreamingLLM

MODEL = "smollm2-135m-instruct"
MODEL_TITLE = "SmolLM2-135M-Instruct"
FULL, LOOKAHEAD, SNAPKV, STREAMING = "full cache", "LookaheadKV", "SnapKV", "StreamingLLM"
MAX_NEW_TOKENS = 12
MAX_ANSWER_TOKENS = 32  # with the words that it is started with
CHUNK = 256
# What is read for each question by itself: SnapKV scores with the queries of that many tokens.
LEAST_REST = 32


@dataclass(frozen=True)
class Options:
    """What the command line sets."""

    budget: int
    prompt_tokens: int
    questions: int
    seed: int


@dataclass(frozen=True)
class Contender:
    """A policy, and its checked twin (None where nothing is evicted, so nothing can be wrong)."""

    policy: Policy
    checks: Checks
    checked: Policy | None = None


@dataclass(frozen=True)
class Result:
    """One question under one policy."""

    answer: Answer
    cache_bytes: int
    seconds: float  # from the end of the text until the cache is cut
    evict_seconds: float = 0.0  # of which choosing and gathering, all layers
    eager_seconds: float | None = None  # the same by the paper-style code
    choices: Sequence[Any] = ()  # what was kept, one per layer


@dataclass(frozen=True)
class Asked:
    """One question; results by the policy's name."""

    needle: Needle
    ids: list[int]
    results: dict[str, Result]


@dataclass
class Run:
    """Everything the report and the pictures are made of."""

    budget: int
    prefill_tokens: int
    prefill_seconds: float
    asked: list[Asked] = field(default_factory=list)
    agreements: dict[str, Agreement] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether everything that was kept is right."""
        return all(agreement.passed for agreement in self.agreements.values())


def common_prefix(sequences: Sequence[list[int]]) -> int:
    """How many tokens all sequences start with; ``LEAST_REST`` of each are left over."""
    same = takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False))
    return min(sum(1 for _ in same), *(len(sequence) - LEAST_REST for sequence in sequences))


def load_chat(dtype: torch.dtype, weights: str, console: Console) -> tuple[Chat, LookaheadModules]:
    """The model and its lookahead modules; prints how long loading took.

    ``FileNotFoundError`` if one of them is missing.
    """
    with console.status(f"Loading {MODEL_TITLE}"):
        (model, tokenizer), seconds = timed(lambda: load(MODEL, dtype=dtype))
        policy = LookaheadKV.from_pretrained(weights, model).policy
    assert isinstance(policy, LookaheadPolicy)
    name = str(dtype).removeprefix("torch.")
    console.print(f"Loaded {MODEL_TITLE} as {name} in {seconds:.1f} s, lookahead modules {weights}")
    return Chat(model, tokenizer), policy.modules


def contenders(modules: LookaheadModules) -> dict[str, Contender]:
    """The policies that are compared, by name, in the order of the report."""
    lookahead, snapkv, streaming = Checks(), Checks(), Checks()
    return {
        FULL: Contender(FullCache(), Checks()),
        LOOKAHEAD: Contender(
            LookaheadPolicy(modules), lookahead, CheckedLookahead(modules, lookahead)
        ),
        SNAPKV: Contender(SnapKV(), snapkv, CheckedSnapKV(snapkv)),
        STREAMING: Contender(StreamingLLM(), streaming, CheckedStreamingLLM(streaming)),
    }


def ask(
    chat: Chat,
    contender: Contender,
    needle: Needle,
    ids: list[int],
    read: int,
    text: EvictableCache,
    budget: int,
) -> Result:
    """Answer one prompt under one policy; ``text`` is the cache of its first ``read`` tokens.

    Two runs, which keep the same: one for the time, one under watch.
    """
    rest = torch.tensor([ids[read:]])
    eviction = Eviction(chat.model, contender.policy)
    cache, seconds = timed(lambda: eviction.prefill(rest, budget=budget, cache=text.fork()))
    size = cache.nbytes()  # before the answer adds to it
    answer = chat.answer(ids, cache, needle.answer_start, MAX_NEW_TOKENS)
    if contender.checked is None:
        return Result(answer, size, seconds)
    watched = Eviction(chat.model, contender.checked)
    watched.runner.record = True
    checks = contender.checks
    before = len(checks.evict_seconds), len(checks.eager_seconds)
    choices = watched.prefill(rest, budget=budget, cache=text.fork()).choices
    ours, eager = checks.evict_seconds[before[0] :], checks.eager_seconds[before[1] :]
    return Result(answer, size, seconds, sum(ours), sum(eager) if eager else None, choices)


def read_text(chat: Chat, ids: list[int], progress: Progress) -> EvictableCache:
    """The full cache of a text, read in chunks under a progress bar."""
    eviction = Eviction(chat.model, FullCache())
    bar = progress.add_task("Prefill, tokens", total=len(ids))
    cache = None
    for part in torch.tensor([ids]).split(CHUNK, dim=1):
        cache = eviction.prefill(part, budget=1.0, cache=cache)
        progress.advance(bar, part.shape[1])
    assert cache is not None
    return cache


def prompts_of(chat: Chat, haystack: Haystack) -> list[list[int]]:
    """A prompt for every question; ``ValueError`` if one is longer than the model reads."""
    prompts = [chat.ids(haystack.user_message(needle)) for needle in haystack.asked]
    longest = max(map(len, prompts))
    if longest + MAX_ANSWER_TOKENS > chat.max_tokens:
        raise ValueError(f"the prompt has {longest} tokens, the model reads {chat.max_tokens}")
    return prompts


def run_demo(chat: Chat, modules: LookaheadModules, options: Options, console: Console) -> Run:
    """Build the prompts, prefill what they share, then ask each question under each policy.

    ``ValueError`` for a prompt longer than the model reads, or one that cannot be built.
    """
    haystack = build_haystack(
        options.seed, options.prompt_tokens, options.questions, chat.count_tokens
    )
    prompts = prompts_of(chat, haystack)
    shared = common_prefix(prompts)
    policies = contenders(modules)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        text, seconds = timed(lambda: read_text(chat, prompts[0][:shared], progress))
        run = Run(options.budget, shared, seconds)
        bar = progress.add_task("Questions x policies", total=len(prompts) * len(policies))
        for needle, ids in zip(haystack.asked, prompts, strict=True):
            results = {}
            for name, contender in policies.items():
                results[name] = ask(chat, contender, needle, ids, shared, text, options.budget)
                progress.advance(bar)
            run.asked.append(Asked(needle, ids, results))
    run.agreements = {
        name: contender.checks.agreement
        for name, contender in policies.items()
        if contender.checked is not None
    }
    return run
