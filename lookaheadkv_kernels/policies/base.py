"""The contract of an eviction policy: which entries of each layer's cache stay after the prefill.

A policy sees plain tensors and calls the project's ops; it knows no model library. A
:class:`Prefiller` runs the model for it, hands it a :class:`LayerCall` per layer, and puts the
returned :class:`Kept` into the cache (``integrations/transformers/prefiller.py`` does). The common
policy is one method, ``score``: see :class:`~lookaheadkv_kernels.policies.scoring.ScorePolicy`.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, Protocol, TypeVar

from torch import Tensor, nn

from ..lookahead import LookaheadModules
from ..ops import gather_kv, score_and_evict
from .budget import Budget


class Kept(NamedTuple):
    """The entries of one layer that stay."""

    key: Tensor  # [B, Hkv, K, D]
    value: Tensor  # [B, Hkv, K, D]
    indices: Tensor  # [B, Hkv, K] int32, ascending, -1 in empty slots at the end
    scores: Tensor | None = None  # [B, Hkv, N] float32, if the policy scores


class Chunk(NamedTuple):
    """A part of the prompt that has just gone through one layer."""

    layer: int
    query: Tensor  # [B, Hq, q, D], post-RoPE, of the newest q entries
    key: Tensor  # [B, Hkv, S, D], post-RoPE
    scale: float
    leftpad_k: Tensor | None  # [B] int32, the first real entry of each row; None: no padding


class Watcher(ABC):
    """What a policy collects while one prompt is read; :meth:`Policy.start` makes it."""

    @abstractmethod
    def observe(self, chunk: Chunk) -> None:
        """See one chunk of the prompt in one layer; chunks come in order, the last one too."""


W = TypeVar("W", bound=Watcher)


class LayerCall(NamedTuple):
    """One layer's entries at a cut, and what a policy needs to choose among them.

    The newest ``num_draft`` rows of ``query`` belong to tokens behind the prompt (a draft, an
    answer, lookahead tokens). Their entries may be stored as well: the newest ``num_dropped``
    entries of ``key`` and ``value`` are theirs, and no policy keeps them.
    """

    layer: int
    num_layers: int
    query: Tensor  # [B, Hq, q, D], post-RoPE, of the newest q tokens
    key: Tensor  # [B, Hkv, S, D], post-RoPE
    value: Tensor  # [B, Hkv, S, D]
    budget: int  # entries to keep per KV head
    scale: float
    leftpad_k: Tensor | None = None  # [B] int32, first real entry; only if handles_padding
    row: int | None = None  # the one row of the batch that this call is about; None: all rows
    lse: Tensor | None = None  # [B, Hq, q] float32 of the query's logits, if attention gave it
    num_draft: int = 0
    num_dropped: int = 0
    watcher: Watcher | None = None  # what start() returned

    @property
    def num_prompt(self) -> int:
        """Entries to choose among."""
        return self.key.shape[2] - self.num_dropped

    def newest(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Queries [B, Hq, <= count, D] of the newest tokens, and their log-sum-exp."""
        lse = None if self.lse is None else self.lse[:, :, -count:]
        return self.query[:, :, -count:], lse

    def watched_by(self, kind: type[W]) -> W:
        """The policy's own watcher, which has seen the whole prompt."""
        assert isinstance(self.watcher, kind)
        return self.watcher

    def keep(self, indices: Tensor, scores: Tensor | None = None) -> Kept:
        """Gather the entries at ``indices`` [B, Hkv, K] (int32, ascending, -1 at the end)."""
        return Kept(*gather_kv(self.key, self.value, indices), indices, scores)

    def keep_best(self, rows: int, *, pool_kernel: int, keep_observation: bool = False) -> Kept:
        """Keep what the newest ``rows`` queries attend to most, in one op.

        Args:
            rows: observation rows; their entries are the newest of ``key``.
            pool_kernel: window of the max-pool over the scores.
            keep_observation: the rows' own entries stay, inside the budget; else they are dropped.

        Raises:
            RuntimeError: the budget cannot hold the observation rows.
        """
        query, lse = self.newest(rows)
        return Kept(
            *score_and_evict(
                query,
                self.key,
                self.value,
                self.budget,
                lse=lse,
                scale=self.scale,
                pool_kernel=pool_kernel,
                keep_observation=keep_observation,
                leftpad_k=self.leftpad_k,
            )
        )


def shown(value: object) -> str:
    """An option of a policy in a few words: a model's repr would fill the screen."""
    if isinstance(value, nn.Module) and not isinstance(value, LookaheadModules):
        return f"<{type(value).__name__}>"
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 4:
        return f"<{len(value)} entries>"
    return repr(value)


class Policy(ABC):
    """An eviction policy. Subclasses choose the entries of one layer that stay.

    Attributes:
        name: name used on the command line and in result files.
        window: newest prompt rows whose queries the policy scores with; a prefill in chunks makes
            its last chunk at least this long.
        modules: lookahead modules whose rows run behind the prompt; None: no such rows.
        mode: with ``modules``: ``"appended"`` runs their rows with the prompt's last chunk,
            ``"extend"`` over the finished prompt's cache.
        handles_padding: ``evict`` takes left-padded batches through ``leftpad_k``; otherwise
            padded rows come one by one, without their padding.
        takes_turns: a later turn may be appended to what an earlier cut left.
        ragged: heads keep different numbers of entries; empty slots of ``Kept`` take no memory.
    """

    name: ClassVar[str]
    window: int = 0
    modules: LookaheadModules | None = None
    mode: str = "appended"
    handles_padding: ClassVar[bool] = False
    takes_turns: ClassVar[bool] = True
    ragged: ClassVar[bool] = False

    def options(self) -> dict[str, object]:
        """The options of the constructor, as far as there are attributes of the same names."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def __repr__(self) -> str:
        """The call that would make it."""
        options = [f"{name}={shown(value)}" for name, value in self.options().items()]
        return f"{type(self).__name__}({', '.join(options)})"

    @abstractmethod
    def evict(self, call: LayerCall) -> Kept:
        """Choose and gather the entries of a layer that stay.

        Raises:
            RuntimeError: the budget cannot hold what the policy pins.
        """

    def layer_budget(self, budget: int, index: int, num_layers: int, num_prompt: int) -> int:
        """Entries that layer ``index`` keeps of a prompt of ``num_prompt`` tokens."""
        return budget

    def start(self, num_layers: int) -> Watcher | None:
        """What sees every chunk of one prompt; None: the policy needs the prompt's end alone."""
        return None

    def prefill(
        self, prefiller: Prefiller[P, C, D], prompt: P, budget: Budget, cache: C | None
    ) -> D:
        """Run the prompt and evict.

        Args:
            prefiller: runs the model.
            prompt: the new tokens, of the prefiller's kind.
            budget: entries to keep.
            cache: what earlier turns left, of the prefiller's kind; None in the first turn.
        """
        return prefiller.one_pass(self, prompt, budget, cache)


class DraftingPolicy(Policy):
    """A policy that reads each row whole, writes a draft from its full cache, and then cuts it."""

    @abstractmethod
    def finish(self, reading: Reading, budget: Budget) -> None:
        """Draft from one row's full cache, and cut it.

        Raises:
            ValueError: a prompt that cannot be drafted from.
            RuntimeError: the budget cannot hold what the policy pins.
        """

    def prefill(
        self, prefiller: Prefiller[P, C, D], prompt: P, budget: Budget, cache: C | None
    ) -> D:
        """Prefill, draft and cut, row by row."""
        return prefiller.row_by_row(
            self, prompt, cache, lambda reading: self.finish(reading, budget)
        )


class Reading(Protocol):
    """One row's prompt in the cache, nothing evicted yet: a policy drafts from it, then cuts it."""

    @property
    def row(self) -> int:
        """Which row of the batch it is."""

    def answer(self, max_tokens: int) -> list[int]:
        """The model's own greedy answer from the full cache, its end token included."""

    def answer_of(self, model: nn.Module, max_tokens: int, name: str) -> list[int]:
        """Another model's greedy answer to the same tokens, its end token included.

        Args:
            model: a causal language model with the same tokenizer.
            max_tokens: longest answer.
            name: of the policy that asks, for the error texts.

        Raises:
            ValueError: the prompt is not made of token ids, or is only the end of a conversation;
                the answer has tokens that the model of this reading does not know.
        """

    def draft_queries(self, policy: Policy, budget: Budget, max_tokens: int) -> Sequence[Tensor]:
        """Queries [1, Hq, m, D] per layer of a draft written from a copy that ``policy`` cut.

        Each of the m <= ``max_tokens`` tokens is fed once, the end token too.
        """

    def cut(
        self,
        policy: Policy,
        budget: Budget,
        window: int,
        draft: Sequence[Tensor] | None = None,
    ) -> None:
        """Evict every layer by the prompt's newest queries and those of a draft behind them.

        Args:
            policy: who chooses.
            budget: entries to keep.
            window: prompt rows that score, the newest ones; those that :meth:`Policy.window`
                remembers at most.
            draft: [1, Hq, m, D] per layer; their entries are not in the cache.
        """

    def cut_behind(
        self, policy: Policy, budget: Budget, window: int, tokens: Sequence[int]
    ) -> None:
        """Run tokens behind the prompt and evict each layer by their rows, which are dropped.

        Args:
            policy: who chooses.
            budget: entries to keep.
            window: prompt rows that score with the tokens' rows, the newest ones.
            tokens: ids of a draft or an answer.
        """


class Rows(Protocol):
    """What a policy may ask of a prompt before it is run."""

    @property
    def batch(self) -> int:
        """Number of rows."""


P = TypeVar("P", bound=Rows)
C = TypeVar("C")
D = TypeVar("D")
P_contra = TypeVar("P_contra", bound=Rows, contravariant=True)
C_contra = TypeVar("C_contra", contravariant=True)
D_co = TypeVar("D_co", covariant=True)


class Prefiller(Protocol[P_contra, C_contra, D_co]):
    """Runs a model's prefill for a policy; prompt, cache and result are of its own kinds."""

    def one_pass(
        self, policy: Policy, prompt: P_contra, budget: Budget, cache: C_contra | None
    ) -> D_co:
        """Prefill, and cut every layer as soon as its attention over the last chunk is done.

        Args:
            policy: who chooses.
            prompt: the new tokens.
            budget: entries to keep.
            cache: what earlier turns left; the prefiller starts an empty one when None.

        Raises:
            ValueError: a later turn that the policy or the cache does not take.
            RuntimeError: the budget cannot hold what the policy pins.
        """

    def row_by_row(
        self,
        policy: Policy,
        prompt: P_contra,
        cache: C_contra | None,
        finish: Callable[[Reading], None],
    ) -> D_co:
        """Read each row's prompt by itself, let ``finish`` draft and cut, and join what is left.

        Args:
            policy: who chooses; its ``window`` newest queries are remembered.
            prompt: the new tokens.
            cache: as for :meth:`one_pass`.
            finish: cuts one row's cache.

        Raises:
            ValueError: a later turn that the policy or the cache does not take.
            RuntimeError: the budget cannot hold what the policy pins.
        """
