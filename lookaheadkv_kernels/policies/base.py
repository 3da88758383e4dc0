"""What an eviction policy is: which entries of each layer's cache stay after the prefill.

Policies see plain tensors and call the project's ops; they know no model library. Whoever runs the
model hands them each layer's newest queries and its keys and values, and puts what they return into
the cache (``integrations/transformers/runner.py`` does).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

Budget = int | float | Sequence[int] | Sequence[float]


class Kept(NamedTuple):
    """What is left of one layer."""

    key: Tensor  # [B, Hkv, K, D]
    value: Tensor  # [B, Hkv, K, D]
    indices: Tensor  # [B, Hkv, K] int32, ascending, -1 in empty slots at the end
    scores: Tensor | None = None  # [B, Hkv, N], where the policy has any


class LayerCall(NamedTuple):
    """One layer's entries at the end of a prefill."""

    layer: int
    num_layers: int
    query: Tensor  # [B, Hq, q, D], post-RoPE, of the newest q entries
    key: Tensor  # [B, Hkv, S, D], post-RoPE
    value: Tensor  # [B, Hkv, S, D]
    budget: int  # entries to keep per KV head
    scale: float
    leftpad_k: Tensor | None = None  # [B] int32, first real entry; only if handles_padding
    state: Any = None  # what start() returned
    row: int | None = None  # the one row of the batch that this is about; None: all of them
    lse: Tensor | None = None  # [B, Hq, q] of the query's logits, where its attention gave it

    def newest(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Queries [B, Hq, <= count, D] of the newest entries, and their log-sum-exp."""
        lse = None if self.lse is None else self.lse[:, :, -count:]
        return self.query[:, :, -count:], lse


class Policy(ABC):
    """An eviction policy. Subclasses say what stays of one layer.

    Attributes:
        name: as the command line and result files have it.
        window: newest prompt rows whose queries the policy scores with; a prefill in chunks makes
            its last chunk at least this long.
        handles_padding: ``evict`` takes left-padded batches through ``leftpad_k``; otherwise
            padded rows come one by one, without their padding.
        watches: ``observe`` wants every chunk of the prompt.
        ragged: heads keep different numbers of entries; empty slots of ``Kept`` take no memory.
    """

    name: ClassVar[str]
    window: int = 0
    handles_padding: ClassVar[bool] = False
    watches: ClassVar[bool] = False
    ragged: ClassVar[bool] = False

    @abstractmethod
    def evict(self, call: LayerCall) -> Kept:
        """Choose and gather what stays of a layer.

        Raises:
            RuntimeError: the budget cannot hold what the policy pins.
        """

    def layer_budget(self, budget: int, index: int, num_layers: int, num_prompt: int) -> int:
        """Entries that layer ``index`` keeps of a prompt of ``num_prompt`` tokens."""
        return budget

    def start(self, num_layers: int) -> Any:
        """State of one prefill, handed to ``observe`` and ``evict``."""
        return None

    def observe(  # noqa: B027 (most policies watch nothing)
        self,
        state: Any,
        index: int,
        query: Tensor,  # [B, Hq, q, D]
        key: Tensor,  # [B, Hkv, S, D], the last q are the query's own
        leftpad_k: Tensor | None,  # [B] int32
        scale: float,
    ) -> None:
        """See a chunk of the prompt in one layer; only called if ``watches``."""

    def prefill(self, runner: Any, prompt: Any, budget: Budget, cache: Any) -> Any:
        """Run the prompt and evict; policies that first write a draft do more than one pass.

        Args:
            runner: runs the model, e.g. ``integrations.transformers.runner.Runner``.
            prompt: the runner's kind of prompt.
            budget: entries to keep.
            cache: what earlier turns left, of the runner's kind; None at the first.
        """
        return runner.one_pass(self, prompt, budget, cache=cache)


def check_at_least(name: str, value: int, least: int) -> None:
    """Refuse an option below what it can mean anything at.

    Raises:
        ValueError: naming it.
    """
    if value < least:
        raise ValueError(f"{name} must be >= {least}, got {value}")


def check_budget(budget: Budget, num_layers: int) -> None:
    """Refuse a budget that no prompt could have.

    Raises:
        ValueError: not an entry count >= 1, a ratio in (0, 1], or one of these for each layer.
    """
    if isinstance(budget, Sequence):
        if len(budget) != num_layers:
            raise ValueError(
                f"budget: {len(budget)} entries for a model of {num_layers} layers; "
                "give one a layer"
            )
        values: Sequence[int | float] = budget
    else:
        values = (budget,)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"budget must be a count or a ratio, got {value!r}")
        if isinstance(value, float) and not 0.0 < value <= 1.0:
            raise ValueError(f"budget as a ratio must be in (0, 1], got {value}")
        if isinstance(value, int) and value < 1:
            raise ValueError(f"budget must be >= 1, got {value}")


def budget_of(budget: Budget, index: int, num_tokens: int) -> int:
    """Entries of layer ``index``: the count itself, or the ratio of ``num_tokens``, rounded up."""
    value = budget[index] if isinstance(budget, Sequence) else budget
    if isinstance(value, int):
        return value
    # 0.1 * 100 is 10.000000000000002 in some orders of operation: that is 10, not 11.
    return max(1, math.ceil(value * num_tokens - 1e-6))
