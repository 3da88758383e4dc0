"""Gradients: column_scores has one; every other op that returns floats refuses its backward.

``torch.library.register_autograd`` takes no keyword-only tensors, and ``leftpad_k`` and
``seqused_k`` are such, so the autograd kernels are registered on the Autograd key directly, as
``register_autograd`` itself does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _outputs, _outputs_paged  # noqa: F401
from ._library import NAMESPACE, OPS

_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def _below_autograd(op: Any, keyset: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run the op's backend kernel."""
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args, **kwargs)


def _wants_grad(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in (*args, *kwargs.values())
    )


class _ColumnScores(torch.autograd.Function):
    """Column scores with the softmax Jacobian of python_ref.column_scores_backward.

    ``lse`` is taken as the log-sum-exp of these same query and key: the gradient goes through the
    whole softmax and none goes to ``lse``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        keyset: Any,
        options: dict[str, Any],
        query: Tensor,  # [B, Hq, L, D]
        key: Tensor,  # [B, Hkv, N + L, D]
        lse: Tensor | None,  # [B, Hq, L]
    ) -> Tensor:
        scores: Tensor = _below_autograd(
            OPS.column_scores.default, keyset, (query, key, lse), options
        )
        ctx.save_for_backward(query, key, lse, options.get("leftpad_k"), options.get("seqused_k"))
        ctx.scale = options.get("scale")
        return scores

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, lse, leftpad_k, seqused_k = ctx.saved_tensors
        grad_query, grad_key = OPS.column_scores_backward.default(
            grads[0],
            query,
            key,
            lse,
            scale=ctx.scale,
            leftpad_k=leftpad_k,
            seqused_k=seqused_k,
        )
        return None, None, grad_query, grad_key, None


def _column_scores(keyset: Any, *args: Any, **options: Any) -> Any:
    if not _wants_grad(args, options):
        op = OPS.column_scores.default
        return _below_autograd(op, keyset, args, options)
    query, key, lse = args if len(args) == 3 else (*args, None)
    return _ColumnScores.apply(keyset, options, query, key, lse)  # type: ignore[no-untyped-call]


# Stands for the gradient of an op that has none. It is an op and not a plain `raise` in backward
# because torch.compile traces the backward of every op whose inputs require grad, even if it is
# never called: tracing must pass, running must fail.
_LIBRARY.define("_no_gradient(Tensor grad, SymInt[] size, str op) -> Tensor")


@torch.library.impl(_LIBRARY, "_no_gradient", "CompositeExplicitAutograd")
def _no_gradient(grad: Tensor, size: Sequence[int], op: str) -> Tensor:
    raise RuntimeError(
        f"lookaheadkv.{op}: has no gradient; lookaheadkv.column_scores is the differentiable op"
    )


@torch.library.register_fake(f"{NAMESPACE}::_no_gradient", lib=_LIBRARY)
def _no_gradient_fake(grad: Tensor, size: Sequence[int], op: str) -> Tensor:
    return grad.new_empty(size)


class _NotDifferentiable(torch.autograd.Function):
    """Forward as it is; the backward raises an error that names the op."""

    @staticmethod
    def forward(
        ctx: Any, op: Any, keyset: Any, names: Sequence[str], num_args: int, *values: Any
    ) -> Any:
        ctx.op_name = op._schema.name.split("::")[1]
        ctx.sizes = [value.shape if isinstance(value, Tensor) else None for value in values]
        options = dict(zip(names, values[num_args:], strict=True))
        return _below_autograd(op, keyset, values[:num_args], options)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[4:]
        return (None,) * 4 + tuple(
            OPS._no_gradient(grads[0], size, ctx.op_name) if wanted else None
            for wanted, size in zip(needed, ctx.sizes, strict=True)
        )


def _register_not_differentiable(name: str) -> None:
    op = getattr(OPS, name).default

    def autograd_kernel(keyset: Any, *args: Any, **options: Any) -> Any:
        if not _wants_grad(args, options):
            return _below_autograd(op, keyset, args, options)
        return _NotDifferentiable.apply(  # type: ignore[no-untyped-call]
            op, keyset, tuple(options), len(args), *args, *options.values()
        )

    _LIBRARY.impl(name, autograd_kernel, "Autograd", with_keyset=True)


_LIBRARY.impl("column_scores", _column_scores, "Autograd", with_keyset=True)
for _name, _op in _outputs.OPS.items():
    if _op.returns == "floats" and _name != "column_scores":
        _register_not_differentiable(_name)
