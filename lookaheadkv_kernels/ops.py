"""The ops as plain functions: attention -> scores -> select -> gather, and all four in one.

Each forwards to the torch op of the same name, so each works under ``torch.compile``,
``torch.export`` and CUDA graphs, and none waits for the device. Every tensor argument may have any
strides; query, key and value must be contiguous in their last dimension, so ``[B, H, S, D]`` and
``[B, S, H, D]`` storage (transposed to the logical shape) both work without a copy.

Letters: B batch, Hq query heads, Hkv KV heads (Hq is a multiple of it), L observation rows (the
lookahead tokens, or the last rows of the prompt), N prompt keys, S = N + L, D head dimension (a
multiple of 8 between 8 and 256). "Float" is float32, float16 or bfloat16; probabilities, sums and
scores are float32 whatever the inputs are.

Padded batches: ``leftpad_k`` and ``seqused_k``, int32 [B], make prompt keys
``leftpad_k[b] <= j < seqused_k[b]`` the valid ones (defaults 0 and N); the L observation keys are
always valid. Padding is never attended to, pooled over or kept, and its scores are 0.

Errors: every function raises RuntimeError, with a message that names the op, the argument and its
value, for wrong shapes, dtypes, devices or options. Values inside ``leftpad_k``, ``seqused_k`` and
``indices`` are checked on the CPU only.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ._library import OPS

__all__ = [
    "Attention",
    "Evicted",
    "KeyValue",
    "column_scores",
    "gather_kv",
    "lookahead_attention",
    "prefill_attention",
    "score_and_evict",
    "select",
]


class Attention(NamedTuple):
    """Result of an attention op over R rows: R = L (lookahead) or R = S (prefill)."""

    out: Tensor
    """[B, Hq, R, D], contiguous, in the query's dtype."""
    lse: Tensor
    """[B, Hq, R] float32: natural log of the sum of exp(scale * q k^T)."""
    scores: Tensor
    """[B, Hkv, N] float32 column scores of the last L rows."""


class KeyValue(NamedTuple):
    """A gathered cache."""

    key: Tensor
    """[B, Hkv, K, D], contiguous."""
    value: Tensor
    """[B, Hkv, K, D], contiguous."""


class Evicted(NamedTuple):
    """The evicted cache of one layer, and the scores behind the choice."""

    key: Tensor
    """[B, Hkv, K, D], contiguous: the kept keys, as they were (never re-rotated)."""
    value: Tensor
    """[B, Hkv, K, D], contiguous: the kept values."""
    indices: Tensor
    """[B, Hkv, K] int32: logical positions, ascending; -1 in empty slots, at the end of a row."""
    scores: Tensor
    """[B, Hkv, N] float32 column scores, before pooling."""


def lookahead_attention(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N + L, D]
    value: Tensor,  # [B, Hkv, N + L, D]
    *,
    scale: float | None = None,
    leftpad_k: Tensor | None = None,  # [B] int32
    seqused_k: Tensor | None = None,  # [B] int32
) -> Attention:
    """Attention of the L observation rows, its log-sum-exp, and the column scores, in one op.

    Row i sees keys 0 .. N + i (bottom-right causal); the probabilities are paper eq. 4, the scores
    those of :func:`column_scores`.

    Args:
        query: float [B, Hq, L, D], the observation rows after RoPE.
        key: [B, Hkv, N + L, D] in the query's dtype, after RoPE; the last L are the rows' own.
        value: like key.
        scale: of the logits; 1 / sqrt(D) when None. Finite.
        leftpad_k: int32 [B], first valid prompt key of each batch row; 0 when None.
        seqused_k: int32 [B], end of the valid prompt keys; N when None.

    Returns:
        ``(out, lse, scores)`` of shapes [B, Hq, L, D], [B, Hq, L], [B, Hkv, N].

    Raises:
        RuntimeError: bad arguments; calling backward (:func:`column_scores` has the gradient).
    """
    return Attention(
        *OPS.lookahead_attention(
            query, key, value, scale=scale, leftpad_k=leftpad_k, seqused_k=seqused_k
        )
    )


def column_scores(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N + L, D]
    lse: Tensor | None = None,  # [B, Hq, L] float32
    *,
    scale: float | None = None,
    leftpad_k: Tensor | None = None,  # [B] int32
    seqused_k: Tensor | None = None,  # [B] int32
) -> Tensor:
    """Mean attention probability that each prompt key receives from the rows of its KV head.

    ``scores[b, h, j]`` is the mean of p[., j] over the L rows of the G = Hq / Hkv query heads that
    share KV head h (paper section 3.1 with the GQA mean). The softmax runs over prompt and
    observation keys; only the prompt's columns are returned.

    Differentiable in query and key. ``lse`` is taken as the log-sum-exp of these same inputs: the
    gradient goes through the whole softmax, and none goes to ``lse``.

    Args:
        query: float [B, Hq, L, D], after RoPE.
        key: [B, Hkv, N + L, D] in the query's dtype, after RoPE.
        lse: float32 [B, Hq, L], the rows' log-sum-exp if the caller's attention gave it; one sweep
            over the keys is then enough. Computed when None.
        scale: of the logits; 1 / sqrt(D) when None. Finite.
        leftpad_k: int32 [B], first valid prompt key; 0 when None.
        seqused_k: int32 [B], end of the valid prompt keys; N when None.

    Returns:
        float32 [B, Hkv, N], contiguous.

    Raises:
        RuntimeError: bad arguments; a second derivative.
    """
    scores: Tensor = OPS.column_scores(
        query, key, lse, scale=scale, leftpad_k=leftpad_k, seqused_k=seqused_k
    )
    return scores


def prefill_attention(
    query: Tensor,  # [B, Hq, S, D]
    key: Tensor,  # [B, Hkv, S, D]
    value: Tensor,  # [B, Hkv, S, D]
    num_lookahead: int,
    *,
    scale: float | None = None,
) -> Attention:
    """Causal attention of a whole prompt with its lookahead rows, and the last rows' scores.

    The appended form of paper algorithm 2: S = N + L positions in one prefill, of which the last
    ``num_lookahead`` = L give the column scores of the first N.

    Args:
        query: float [B, Hq, S, D], after RoPE.
        key: [B, Hkv, S, D] in the query's dtype, after RoPE.
        value: like key.
        num_lookahead: L, in 1 .. S.
        scale: of the logits; 1 / sqrt(D) when None. Finite.

    Returns:
        ``(out, lse, scores)`` of shapes [B, Hq, S, D], [B, Hq, S], [B, Hkv, N].

    Raises:
        RuntimeError: bad arguments; calling backward (:func:`column_scores` has the gradient).
    """
    return Attention(*OPS.prefill_attention(query, key, value, num_lookahead, scale=scale))


def select(
    scores: Tensor,  # [B, Hkv, N] float32
    budget: int,
    *,
    pool_kernel: int = 7,
    num_sink: int = 0,
    num_recent: int = 0,
    leftpad_k: Tensor | None = None,  # [B] int32
    seqused_k: Tensor | None = None,  # [B] int32
) -> Tensor:
    """Max-pool the scores, then keep the ``budget`` best positions of each row (paper section F).

    The pool is centred, stride 1, over valid positions only. Larger first, ties to the smaller
    position, NaN below every number: the same answer on every backend and every run.

    Args:
        scores: float32 [B, Hkv, N], any strides.
        budget: positions to keep, at least 1; budget >= N keeps all.
        pool_kernel: odd window of the max-pool; 1 switches it off.
        num_sink: first valid positions that are kept whatever their score, inside the budget.
        num_recent: last valid positions that are kept whatever their score, inside the budget.
        leftpad_k: int32 [B], first valid position; 0 when None.
        seqused_k: int32 [B], end of the valid positions; N when None.

    Returns:
        int32 [B, Hkv, min(budget, N)], ascending in each row; a row with fewer valid positions
        than slots has -1 in the last ones.

    Raises:
        RuntimeError: bad arguments; num_sink + num_recent > budget.
    """
    indices: Tensor = OPS.select(
        scores,
        budget,
        pool_kernel=pool_kernel,
        num_sink=num_sink,
        num_recent=num_recent,
        leftpad_k=leftpad_k,
        seqused_k=seqused_k,
    )
    return indices


def gather_kv(
    key: Tensor,  # [B, Hkv, S, D]
    value: Tensor,  # [B, Hkv, S, D]
    indices: Tensor,  # [B, Hkv, K] int32
) -> KeyValue:
    """Copy the kept rows of key and value, bit for bit (paper algorithm 2, the pruned cache).

    Args:
        key: float [B, Hkv, S, D].
        value: like key.
        indices: int32 [B, Hkv, K], any order, each -1 (gives a row of zeros) or in 0 .. S - 1.

    Returns:
        ``(key, value)``, each [B, Hkv, K, D], contiguous.

    Raises:
        RuntimeError: bad arguments; on the CPU an index out of range; calling backward.
    """
    return KeyValue(*OPS.gather_kv(key, value, indices))


def score_and_evict(
    query: Tensor,  # [B, Hq, L, D]
    key: Tensor,  # [B, Hkv, N + L, D]
    value: Tensor,  # [B, Hkv, N + L, D]
    budget: int,
    *,
    lse: Tensor | None = None,  # [B, Hq, L] float32
    scale: float | None = None,
    pool_kernel: int = 7,
    num_sink: int = 0,
    num_recent: int = 0,
    keep_observation: bool = False,
    leftpad_k: Tensor | None = None,  # [B] int32
    seqused_k: Tensor | None = None,  # [B] int32
) -> Evicted:
    """Keep the ``budget`` cache entries per KV head that the observation rows attend to most.

    :func:`column_scores`, :func:`select` and :func:`gather_kv` in one op (paper algorithm 2).
    Logical positions stay what they were: decoding goes on at position N (or N + L with
    ``keep_observation``), not at K.

    Args:
        query: float [B, Hq, L, D], the observation rows after RoPE.
        key: [B, Hkv, N + L, D] in the query's dtype, after RoPE; the last L are the rows' own.
        value: like key.
        budget: entries to keep per KV head, at least 1; budget >= N keeps the whole prompt.
        lse: float32 [B, Hq, L], the rows' log-sum-exp if the caller's attention gave it.
        scale: of the logits; 1 / sqrt(D) when None. Finite.
        pool_kernel: odd window of the max-pool; 1 switches it off.
        num_sink: first valid prompt positions that are always kept, inside the budget.
        num_recent: last valid prompt positions that are always kept, inside the budget.
        keep_observation: False: the L rows are lookahead tokens and are dropped. True: they are
            the end of the prompt (SnapKV) and are kept too, inside the budget.
        leftpad_k: int32 [B], first valid prompt key; 0 when None.
        seqused_k: int32 [B], end of the valid prompt keys; N when None.

    Returns:
        ``(key, value, indices, scores)`` of shapes [B, Hkv, K, D] twice, [B, Hkv, K], [B, Hkv, N],
        with K = min(budget, N), or min(budget - L, N) + L with ``keep_observation``. In a row with
        fewer valid keys than slots the last slots hold -1, and zeros as key and value.

    Raises:
        RuntimeError: bad arguments; a budget that cannot hold what is pinned; calling backward
            (:func:`column_scores` has the gradient).
    """
    return Evicted(
        *OPS.score_and_evict(
            query,
            key,
            value,
            budget,
            lse=lse,
            scale=scale,
            pool_kernel=pool_kernel,
            num_sink=num_sink,
            num_recent=num_recent,
            keep_observation=keep_observation,
            leftpad_k=leftpad_k,
            seqused_k=seqused_k,
        )
    )
