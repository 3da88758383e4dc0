"""The common policy, which is a score per entry, and scores that no single op gives."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ..ops import lookahead_attention, select
from ..unmasked import grouped, logits_of
from .base import Kept, LayerCall, Policy

# Rows of a causal pass that are scored at once: they take this many squared logits per head.
ROW_BLOCK = 128


class ScorePolicy(Policy):
    """A policy that is one method: the entries with the best scores stay.

    Subclasses write :meth:`score`, and set what they pin in their constructor.

    Attributes:
        pool_kernel: window of the max-pool over the scores; 1: none.
        num_sink: first entries with a score that always stay, inside the budget.
        num_recent: newest entries with a score that always stay, inside the budget.
    """

    pool_kernel: int = 1
    num_sink: int = 0
    num_recent: int = 0

    @abstractmethod
    def score(self, call: LayerCall) -> Tensor:
        """The worth of the prompt's entries, larger is better: float32 [B, Hkv, n].

        Where n is less than ``call.num_prompt``, the newest entries have no score: they always
        stay, inside the budget, and the max-pool does not see them.
        """

    def evict(self, call: LayerCall) -> Kept:
        """Keep the best; ties go to the earlier entry.

        Raises:
            RuntimeError: the budget cannot hold what is pinned.
        """
        scores = self.score(call)
        scored, stored = scores.shape[2], call.num_prompt
        if stored > call.budget:
            check_window(self.name, call.budget, stored - scored)
            check_pinned(
                self.name,
                call.budget - (stored - scored),
                num_sink=self.num_sink,
                num_recent=self.num_recent,
            )
        recent = everything(call, stored)[:, :, scored:]
        room = call.budget - recent.shape[2]
        if room < 1:
            return call.keep(recent, scores)
        best = select(
            scores,
            room,
            pool_kernel=self.pool_kernel,
            num_sink=min(self.num_sink, scored),
            num_recent=min(self.num_recent, scored),
            leftpad_k=call.leftpad_k,
        )
        return call.keep(torch.cat([best, recent], dim=2) if scored < stored else best, scores)


def causal_column_sums(
    query: Tensor,  # [B, Hq, q, D]
    key: Tensor,  # [B, Hkv, S, D], the last q are the query's own
    scale: float,
) -> Tensor:
    """What each key receives from all q rows: sum over rows, mean over the group, [B, Hkv, S].

    The rows go through in blocks: the op gives the scores of the keys before a block and the
    rows' log-sum-exp; the block's own triangle is small enough for plain PyTorch. No q x S matrix.
    """
    rows, stored = query.shape[2], key.shape[2]
    sums = torch.zeros(key.shape[:3], dtype=torch.float32, device=key.device)
    for start in range(0, rows, ROW_BLOCK):
        block = query[:, :, start : start + ROW_BLOCK]
        length = block.shape[2]
        before = stored - rows + start
        seen = key[:, :, : before + length]
        # Only the log-sum-exp is wanted of the output, so any values do.
        _, lse, scores = lookahead_attention(block, seen, seen, scale=scale)
        own = (logits_of(block, seen[:, :, before:], scale) - grouped(lse, key.shape[1])).exp()
        sums[:, :, :before] += scores * length
        sums[:, :, before : before + length] += own.tril().sum(dim=3).mean(dim=2)
    return sums


def everything(call: LayerCall, num_entries: int) -> Tensor:
    """Positions of the first ``num_entries`` entries, in every head: int32 [B, Hkv, n]."""
    positions = torch.arange(num_entries, dtype=torch.int32, device=call.key.device)
    return positions.expand(*call.key.shape[:2], num_entries)


def check_window(name: str, budget: int, window: int) -> None:
    """Refuse a budget that cannot hold the observation window.

    Raises:
        RuntimeError: names the policy, the window and the budget.
    """
    if budget < window:
        raise RuntimeError(f"{name}: budget must hold the window of {window} entries, got {budget}")


def check_pinned(name: str, budget: int, **pinned: int) -> None:
    """Refuse a budget that cannot hold the entries that always stay.

    Args:
        name: of the policy.
        budget: entries that it may keep.
        **pinned: how many entries always stay, by the option that says so.

    Raises:
        RuntimeError: names the policy, the options and the budget.
    """
    total = sum(pinned.values())
    if budget < total:
        options = " and ".join(f"{option}={count}" for option, count in pinned.items() if count)
        raise RuntimeError(
            f"{name}: budget must hold {options}, {total} pinned entries, got {budget}"
        )
