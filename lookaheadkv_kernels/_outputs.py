"""The front half of every op: check the arguments, make the empty results.

These functions run on real tensors and on those that have only a shape. Each returns its checked
arguments, grouped for who computes, and the empty results last. So each is two things: the op's
fake kernel (torch.compile, torch.export, meta tensors), which keeps the results alone, and the
first step of Triton's op, which then launches kernels that write the results.

Sizes stay symbolic: ``min(budget, N)`` is an expression, not a guard on N.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.library import register_fake

from ._checks import Checks, Inputs, Options, Size
from ._library import NAMESPACE

Returns = Literal["floats", "indices", "nothing"]
Front = TypeVar("Front", bound=Callable[..., tuple[Any, ...]])


class Op(NamedTuple):
    """What Python knows of one op."""

    front: Callable[..., tuple[Any, ...]]
    """Its function in this module or in _outputs_paged.py."""
    returns: Returns
    """Only floats could have a gradient; "nothing": it writes tensors that it is given."""

    def results(self, checked: tuple[Any, ...]) -> Any:
        """What the op returns, of what its front half returned."""
        return None if self.returns == "nothing" else checked[-1]


OPS: dict[str, Op] = {}
"""By name, in the order of their definition: the one list of the ops."""


def front_of(returns: Returns) -> Callable[[Front], Front]:
    """Decorator: the function is the front half of the op of its name, and its fake kernel."""

    def register(function: Front) -> Front:
        op = OPS[function.__name__] = Op(function, returns)

        def fake(*args: Any, **options: Any) -> Any:
            return op.results(function(*args, **options))

        register_fake(f"{NAMESPACE}::{function.__name__}")(fake)
        return function

    return register


def _scores_like(query: Tensor, key: Tensor, num_prompt: Size) -> Tensor:
    """[B, Hkv, N] float32 on the query's device."""
    return query.new_empty((query.shape[0], key.shape[1], num_prompt), dtype=torch.float32)


@front_of("floats")
def lookahead_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> tuple[Inputs, tuple[Tensor, Tensor, Tensor]]:
    """out like query (contiguous), lse [B, Hq, L] float32, scores [B, Hkv, N] float32."""
    inputs = Inputs(query, key, value, None, scale, leftpad_k, seqused_k)
    Checks("lookahead_attention").scoring(inputs)
    return inputs, (
        query.new_empty(query.shape),
        query.new_empty(query.shape[:3], dtype=torch.float32),
        _scores_like(query, key, key.shape[2] - query.shape[2]),
    )


@front_of("floats")
def column_scores(
    query: Tensor,
    key: Tensor,
    lse: Tensor | None = None,
    *,
    scale: float | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> tuple[Inputs, Tensor]:
    """scores [B, Hkv, N] float32."""
    inputs = Inputs(query, key, None, lse, scale, leftpad_k, seqused_k)
    Checks("column_scores").scoring(inputs)
    return inputs, _scores_like(query, key, key.shape[2] - query.shape[2])


@front_of("floats")
def column_scores_backward(
    grad_scores: Tensor,
    query: Tensor,
    key: Tensor,
    lse: Tensor | None = None,
    *,
    scale: float | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> tuple[Tensor, Inputs, tuple[Tensor, Tensor]]:
    """grad_query and grad_key, contiguous, in the inputs' dtype."""
    checks = Checks("column_scores_backward")
    inputs = Inputs(query, key, None, lse, scale, leftpad_k, seqused_k)
    checks.scoring(inputs)
    num_prompt = key.shape[2] - query.shape[2]
    checks.float_tensor("grad_scores", grad_scores, (*key.shape[:2], num_prompt), query)
    return grad_scores, inputs, (query.new_empty(query.shape), key.new_empty(key.shape))


@front_of("floats")
def prefill_attention(
    query: Tensor, key: Tensor, value: Tensor, num_lookahead: int, *, scale: float | None = None
) -> tuple[Inputs, int, tuple[Tensor, Tensor, Tensor]]:
    """out like query (contiguous), lse [B, Hq, S] float32, scores [B, Hkv, N] float32."""
    checks = Checks("prefill_attention")
    checks.prefill_inputs(query, key, value, num_lookahead)
    checks.scale(scale)
    results = (
        query.new_empty(query.shape),
        query.new_empty(query.shape[:3], dtype=torch.float32),
        _scores_like(query, key, query.shape[2] - num_lookahead),
    )
    return Inputs(query, key, value, scale=scale), num_lookahead, results


@front_of("indices")
def select(
    scores: Tensor,
    budget: int,
    *,
    pool_kernel: int = 7,
    num_sink: int = 0,
    num_recent: int = 0,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> tuple[Tensor, Options, Tensor | None, Tensor | None, Tensor]:
    """indices [B, Hkv, min(budget, N)] int32."""
    checks = Checks("select")
    checks.scores_input(scores)
    checks.lengths(leftpad_k, seqused_k, "scores", scores)
    options = Options(budget, pool_kernel=pool_kernel, num_sink=num_sink, num_recent=num_recent)
    checks.budget(options)
    shape = (*scores.shape[:2], torch.sym_min(budget, scores.shape[2]))
    return scores, options, leftpad_k, seqused_k, scores.new_empty(shape, dtype=torch.int32)


@front_of("floats")
def gather_kv(
    key: Tensor, value: Tensor, indices: Tensor
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """key and value [B, Hkv, K, D], contiguous."""
    Checks("gather_kv").gather_inputs(key, value, indices)
    shape = (*key.shape[:2], indices.shape[2], key.shape[3])
    return key, value, indices, (key.new_empty(shape), value.new_empty(shape))


@front_of("floats")
def score_and_evict(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    budget: int,
    *,
    lse: Tensor | None = None,
    scale: float | None = None,
    pool_kernel: int = 7,
    num_sink: int = 0,
    num_recent: int = 0,
    keep_observation: bool = False,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> tuple[Inputs, Options, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """key and value [B, Hkv, K, D], indices [B, Hkv, K] int32, scores [B, Hkv, N] float32."""
    checks = Checks("score_and_evict")
    inputs = Inputs(query, key, value, lse, scale, leftpad_k, seqused_k)
    checks.scoring(inputs)
    appended = query.shape[2] if keep_observation else 0
    options = Options(budget, pool_kernel, num_sink, num_recent, keep_observation)
    checks.budget(options, query.shape[2])
    num_prompt = key.shape[2] - query.shape[2]
    num_kept = torch.sym_min(budget - appended, num_prompt) + appended
    shape = (*key.shape[:2], num_kept, key.shape[3])
    return (
        inputs,
        options,
        (
            key.new_empty(shape),
            value.new_empty(shape),
            key.new_empty(shape[:3], dtype=torch.int32),
            _scores_like(query, key, num_prompt),
        ),
    )
