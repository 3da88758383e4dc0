"""What a picture is made of: a prompt's pieces of text, and what each policy kept of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .tokens import Piece


class Mark(NamedTuple):
    """A stretch of tokens that the reader should find, ``start`` to ``stop`` - 1."""

    label: str  # "needle", "question", ...; marks with one label have one colour
    start: int
    stop: int


class Selection(NamedTuple):
    """Which layer and KV head are looked at; None means all."""

    layer: int | None = None
    head: int | None = None

    def check(self, layers: int, heads: int) -> None:
        """Refuse a layer or head that a model of this size lacks.

        Raises:
            ValueError: it does.
        """
        for name, chosen, count in (("layer", self.layer, layers), ("head", self.head, heads)):
            if chosen is not None and not 0 <= chosen < count:
                raise ValueError(f"{name} must be in 0..{count - 1}, got {chosen}")


EVERYTHING = Selection()


@dataclass(frozen=True)
class PolicyView:
    """What one policy kept.

    Attributes:
        name: as the picture shows it.
        positions: int32 [layers, KV heads, K], kept tokens; -1 in empty slots.
        scores: float32 like ``positions``, NaN where an entry stays whatever its score; None for
            a policy without scores.
        note: a line below the name, such as the answer that the model gave.
        good: whether the note says something good (True), bad (False), or neither (None).
    """

    name: str
    positions: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32] | None = None
    note: str = ""
    good: bool | None = None

    @classmethod
    def from_choices(
        cls,
        name: str,
        choices: Iterable[Any],
        *,
        row: int = 0,
        note: str = "",
        good: bool | None = None,
    ) -> PolicyView:
        """From the ``choices`` of a cache whose runner records them.

        Args:
            name: as the picture shows it.
            choices: one per layer, with ``positions`` [B, Hkv, K] and ``scores`` [B, Hkv, N] or
                None; of a prompt's first eviction, without padding: scores are indexed by position.
            row: of the batch.
            note: see :class:`PolicyView`.
            good: see :class:`PolicyView`.
        """
        positions, scores = [], []
        for choice in choices:
            kept = choice.positions[row].cpu().numpy().astype(np.int32)
            found = np.full(kept.shape, np.nan, dtype=np.float32)
            if choice.scores is not None:
                all_scores = choice.scores[row].float().cpu().numpy()
                # Entries behind the last score were kept without one: the observation window.
                scored = (kept >= 0) & (kept < all_scores.shape[1])
                where = np.where(scored, kept, 0)
                found = np.where(scored, np.take_along_axis(all_scores, where, axis=1), np.nan)
            positions.append(kept)
            scores.append(found)
        stacked = _stack(scores, np.nan)
        return cls(
            name,
            _stack(positions, -1),
            None if np.isnan(stacked).all() else stacked,
            note,
            good,
        )

    def select(self, selection: Selection) -> npt.NDArray[np.int32]:
        """Positions of the selected layers and heads: [layers', heads', K]."""
        layers = slice(None) if selection.layer is None else [selection.layer]
        heads = slice(None) if selection.head is None else [selection.head]
        return self.positions[layers][:, heads]


@dataclass(frozen=True)
class Picture:
    """A prompt and what each policy kept of it.

    Attributes:
        pieces: the prompt's text, see :func:`~.tokens.split_pieces`.
        policies: what to compare; all over the same model.
        marks: stretches to point out; they must not overlap.
        title: the heading.
        subtitle: a line below it.

    Raises:
        ValueError: no policy, policies of different models, positions or marks outside the prompt,
            or marks that overlap.
    """

    pieces: Sequence[Piece]
    policies: Sequence[PolicyView]
    marks: Sequence[Mark] = field(default=())
    title: str = "What stays in the cache"
    subtitle: str = ""

    def __post_init__(self) -> None:
        if not self.policies:
            raise ValueError("a picture needs at least one policy")
        for policy in self.policies:
            if policy.positions.shape[:2] != self.shape:
                raise ValueError(
                    f"{policy.name}: [layers, heads] are {list(policy.positions.shape[:2])}, those "
                    f"of {self.policies[0].name} are {list(self.shape)}"
                )
            if policy.positions.size and int(policy.positions.max()) >= self.num_tokens:
                raise ValueError(
                    f"{policy.name}: kept position {int(policy.positions.max())} of a prompt of "
                    f"{self.num_tokens} tokens"
                )
        end = 0
        for mark in sorted(self.marks, key=lambda mark: mark.start):
            if not end <= mark.start < mark.stop <= self.num_tokens:
                raise ValueError(
                    f"{mark} is empty, overlaps another mark, or lies outside the prompt of "
                    f"{self.num_tokens} tokens"
                )
            end = mark.stop

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.pieces[-1].stop if self.pieces else 0

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, KV heads) of the model."""
        layers, heads = self.policies[0].positions.shape[:2]
        return int(layers), int(heads)

    @property
    def labels(self) -> list[str]:
        """The labels of the marks, each once, in the order of the text."""
        return list(dict.fromkeys(mark.label for mark in sorted(self.marks, key=lambda m: m.start)))

    def shares(self, policy: PolicyView, selection: Selection) -> npt.NDArray[np.float64]:
        """Share of the selected heads that keep each token: [tokens], 0 to 1."""
        kept = policy.select(selection)
        counts = np.bincount(kept[kept >= 0], minlength=self.num_tokens)
        shares: npt.NDArray[np.float64] = counts / (kept.shape[0] * kept.shape[1])
        return shares

    def mark_share(self, policy: PolicyView, label: str, selection: Selection) -> float:
        """Share of the marked entries that is kept, over all marks with that label."""
        shares = self.shares(policy, selection)
        marked = [shares[mark.start : mark.stop] for mark in self.marks if mark.label == label]
        return float(np.concatenate(marked).mean())


def find_mark(label: str, pieces: Sequence[Piece], text: str) -> Mark:
    """Mark the first place where the prompt says ``text``.

    Raises:
        ValueError: it does not.
    """
    at = "".join(piece.text for piece in pieces).find(text)
    if at < 0 or not text:
        raise ValueError(f"the prompt does not contain {text!r}")
    start, stop, offset = None, 0, 0
    for piece in pieces:
        end = offset + len(piece.text)
        if end > at and offset < at + len(text):
            start = piece.start if start is None else start
            stop = piece.stop
        offset = end
    assert start is not None
    return Mark(label, start, stop)


def _stack(layers: Sequence[npt.NDArray[Any]], fill: float) -> npt.NDArray[Any]:
    """Layers [heads, K_l] as one array; shorter ones are filled up."""
    most = max(layer.shape[1] for layer in layers)
    padded = [
        np.pad(layer, ((0, 0), (0, most - layer.shape[1])), constant_values=fill)
        for layer in layers
    ]
    return np.stack(padded)
