"""Checks what a policy kept, per layer and KV head, against the project's reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from statistics import median
from time import perf_counter
from typing import TypeVar

import torch
from lookaheadkv_kernels.python_ref import gather_kv, score_and_evict, select
from torch import Tensor

from bench.peers.eager import eager_score_and_evict
from lookaheadkv_kernels.lookahead import LookaheadModules
from lookaheadkv_kernels.policies import Kept, LayerCall, LookaheadPolicy, SnapKV, StreamingLLM

SAME_BAR = 0.999
TIMING_REPEATS = 5

T = TypeVar("T")


def timed(function: Callable[[], T], repeats: int = 1) -> tuple[T, float]:
    """The function's last result and its median time in seconds."""
    seconds = []
    for _ in range(repeats):
        start = perf_counter()
        result = function()
        seconds.append(perf_counter() - start)
    return result, median(seconds)


@dataclass(frozen=True)
class Agreement:
    """Counts over layers and heads; ``+`` joins them."""

    heads: int = 0
    exact_heads: int = 0  # positions, keys and values are what the reference takes by these scores
    kept: int = 0
    same: int = 0  # of those, kept by the reference run end to end in float32

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            *(getattr(self, f.name) + getattr(other, f.name) for f in fields(Agreement))
        )

    @property
    def passed(self) -> bool:
        """Both bars: every head exact, at least 99.9 % the same end to end."""
        return self.exact_heads == self.heads and self.same >= SAME_BAR * self.kept


def compare(call: LayerCall, kept: Kept, chosen: Tensor, reference: Tensor) -> Agreement:
    """One layer's agreement.

    Args:
        call: what the policy got.
        kept: what it kept.
        chosen: the positions that the reference takes by the policy's own scores, [B, Hkv, K].
        reference: those it takes by itself, end to end in float32.
    """
    batch, heads, count = kept.indices.shape
    key, value = gather_kv(call.key, call.value, chosen)
    exact = torch.zeros(batch, heads, dtype=torch.bool)
    if kept.indices.shape == chosen.shape and kept.key.shape == key.shape:
        exact = (kept.indices == chosen).all(dim=-1)
        for ours, theirs in ((kept.key, key), (kept.value, value)):
            exact &= (ours == theirs).all(dim=-1).all(dim=-1)
    return Agreement(
        heads=batch * heads,
        exact_heads=int(exact.sum()),
        kept=batch * heads * count,
        same=count_common(kept.indices, reference),
    )


def count_common(a: Tensor, b: Tensor) -> int:
    """How many of the positions a [B, H, K] are among b [B, H, M], per head (distinct)."""
    return int((a[..., :, None] == b[..., None, :]).any(dim=-1).sum())


@dataclass
class Checks:
    """What has been found out about one policy, over layers and prompts."""

    agreement: Agreement = Agreement()
    evict_seconds: list[float] = field(default_factory=list)  # one per layer, our op
    eager_seconds: list[float] = field(default_factory=list)  # one per layer, paper-style code

    def time(self, ours: Callable[[], Kept], eager: Callable[[], object] | None) -> Kept:
        """Run our op and the eager code, record their times, and return what our op kept."""
        kept, seconds = timed(ours, TIMING_REPEATS)
        self.evict_seconds.append(seconds)
        if eager is not None:
            self.eager_seconds.append(timed(eager, TIMING_REPEATS)[1])
        return kept


class CheckedLookahead(LookaheadPolicy):
    """LookaheadKV that compares every layer's choice with the reference."""

    def __init__(self, modules: LookaheadModules, checks: Checks) -> None:
        super().__init__(modules)
        self.checks = checks

    def evict(self, call: LayerCall) -> Kept:
        """As LookaheadKV does it."""
        query = call.query[:, :, -self.modules.config.num_lookahead :]
        layer = (query, call.key, call.value)
        ours = super().evict
        kept = self.checks.time(
            lambda: ours(call), lambda: eager_score_and_evict(*layer, call.budget)
        )
        assert kept.scores is not None
        chosen = select(kept.scores, call.budget)
        reference = score_and_evict(*(t.float() for t in layer), call.budget, scale=call.scale)
        self.checks.agreement += compare(call, kept, chosen, reference.indices)
        return kept


class CheckedSnapKV(SnapKV):
    """SnapKV that compares every layer's choice with the reference."""

    def __init__(self, checks: Checks) -> None:
        super().__init__()
        self.checks = checks

    def evict(self, call: LayerCall) -> Kept:
        """As SnapKV does it."""
        layer = (call.query[:, :, -self.window :], call.key, call.value)
        ours, rest = super().evict, call.budget - self.window
        # The eager code drops the observation entries: its budget is what is chosen besides them.
        kept = self.checks.time(lambda: ours(call), lambda: eager_score_and_evict(*layer, rest))
        assert kept.scores is not None
        best = select(kept.scores, rest)
        num_keys = call.key.shape[2]
        window = torch.arange(num_keys - self.window, num_keys, dtype=torch.int32)
        chosen = torch.cat([best, window.expand(*best.shape[:2], self.window)], dim=-1)
        reference = score_and_evict(
            *(t.float() for t in layer), call.budget, scale=call.scale, keep_observation=True
        )
        self.checks.agreement += compare(call, kept, chosen, reference.indices)
        return kept


class CheckedStreamingLLM(StreamingLLM):
    """StreamingLLM that compares every layer's choice with the first and the last positions."""

    def __init__(self, checks: Checks) -> None:
        super().__init__()
        self.checks = checks

    def evict(self, call: LayerCall) -> Kept:
        """As StreamingLLM does it."""
        ours = super().evict
        kept = self.checks.time(lambda: ours(call), None)
        num_keys = call.key.shape[2]
        newest = range(self.num_sink + max(0, num_keys - call.budget), num_keys)
        chosen = torch.tensor([*range(self.num_sink), *newest], dtype=torch.int32)
        chosen = chosen.expand(*call.key.shape[:2], len(chosen))
        self.checks.agreement += compare(call, kept, chosen, chosen)
        return kept
