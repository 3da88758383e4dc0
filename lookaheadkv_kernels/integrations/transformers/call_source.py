"""How a model's attention class calls transformers' attention interface, read from its source.

Whether a class attends once per layer, with the keys that its cache returned, and which arguments
it passes, stands in its ``forward``. Reading it costs nothing and runs nothing, so that a model is
refused when eviction is attached to it. What cannot be told from the source is checked again, by
value, when the model runs.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from .arguments import HARMLESS, check_argument

INTERFACE = "ALL_ATTENTION_FUNCTIONS"
# Nodes of expressions that only read what a module is.
READING = (
    ast.Attribute,
    ast.BinOp,
    ast.BoolOp,
    ast.Call,
    ast.Compare,
    ast.Constant,
    ast.IfExp,
    ast.Name,
    ast.Subscript,
    ast.UnaryOp,
    ast.boolop,
    ast.cmpop,
    ast.expr_context,
    ast.operator,
    ast.unaryop,
)
# Known when the model runs: it depends on the mode that the model is in.
AT_RUN_TIME = frozenset({"dropout"})


class AttentionSource(NamedTuple):
    """What a ``forward`` says about its attention."""

    refusal: str | None  # why its caches cannot be cut
    arguments: dict[str, ast.expr]  # of the one call of the attention interface


_KNOWN: dict[type[nn.Module], AttentionSource | None] = {}


def check_source(attention: nn.Module) -> None:
    """Refuse an attention module by what its source shows.

    Raises:
        ValueError: it attends in a way that eviction cannot follow, or with arguments that eviction
            does not support.
    """
    kind = type(attention)
    if kind not in _KNOWN:
        _KNOWN[kind] = _read(kind)
    source = _KNOWN[kind]
    if source is None:
        return
    if source.refusal is not None:
        raise ValueError(f"{kind.__name__} {source.refusal}")
    for name, expression in source.arguments.items():
        if name in AT_RUN_TIME:
            continue
        try:
            value = _value(attention, expression)
        except LookupError:
            if name not in HARMLESS and name not in ("scaling", "sliding_window", "is_causal"):
                raise ValueError(
                    f"{kind.__name__} attends with {name}={ast.unparse(expression)}: eviction does "
                    "not support it"
                ) from None
            continue
        check_argument(kind.__name__, name, value)


def _read(kind: type[nn.Module]) -> AttentionSource | None:
    """What the source of a class says; None if it says nothing."""
    try:
        forward = ast.parse(textwrap.dedent(inspect.getsource(kind.forward))).body[0]
        whole = inspect.getsource(kind)
    except (OSError, TypeError, SyntaxError):
        return None
    names = {"attention_interface"} | _assigned_from(forward, INTERFACE)
    calls = [
        node
        for node in ast.walk(forward)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
    ]
    if not calls:
        by_itself = INTERFACE not in whole and not any(
            INTERFACE in inspect.getsource(base)
            for base in kind.__mro__[1:]
            if base is not nn.Module and issubclass(base, nn.Module)
        )
        refusal = "does not attend through transformers' attention interface"
        return AttentionSource(refusal, {}) if by_itself else None
    return AttentionSource(_refusal(forward, calls), _keywords(calls[0]))


def _refusal(forward: ast.AST, calls: list[ast.Call]) -> str | None:
    if len(calls) > 1:
        return f"attends {len(calls)} times per layer, each time to other values than it caches"
    passed = [ast.unparse(argument) for argument in calls[0].args]
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in calls[0].keywords}
    stored = _stored(forward)
    for place, name in ((2, "key"), (3, "value")):
        handed = passed[place] if place < len(passed) else given.get(name)
        if stored is None or handed is None:
            continue
        returned, line = stored[0][place - 2], stored[1]
        if handed != returned or line < _last_assignment(forward, returned, calls[0].lineno):
            return f"attends to another {name} than its cache returned"
    mask = passed[4] if len(passed) > 4 else given.get("attention_mask", "attention_mask")
    if mask != "attention_mask" or _last_assignment(forward, mask, calls[0].lineno):
        return f"makes a mask of its own ({mask}), which knows nothing of evicted entries"
    return None


def _keywords(call: ast.Call) -> dict[str, ast.expr]:
    names = ("query", "key", "value", "attention_mask", "module")
    return {k.arg: k.value for k in call.keywords if k.arg is not None and k.arg not in names}


def _assignments(forward: ast.AST) -> Iterator[tuple[list[str], ast.expr, int]]:
    """(the names it gives a value to, the value, line) of every assignment to plain names."""
    for node in ast.walk(forward):
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            targets = [node.target]
        else:
            continue
        if node.value is not None:
            for target in targets:
                parts = target.elts if isinstance(target, ast.Tuple) else [target]
                yield [ast.unparse(part) for part in parts], node.value, node.lineno


def _assigned_from(forward: ast.AST, text: str) -> set[str]:
    return {
        name
        for names, value, _ in _assignments(forward)
        for name in names
        if text in ast.unparse(value)
    }


def _stored(forward: ast.AST) -> tuple[list[str], int] | None:
    """Names of the keys and values that the last ``cache.update`` returned, and its line."""
    updates = [
        (names, line)
        for names, value, line in _assignments(forward)
        if len(names) == 2
        and isinstance(value, ast.Call)
        and isinstance(value.func, ast.Attribute)
        and value.func.attr == "update"
        and isinstance(value.func.value, ast.Name)
    ]
    return max(updates, key=lambda update: update[1], default=None)


def _last_assignment(forward: ast.AST, name: str, before: int) -> int:
    """Line of the last assignment to ``name`` above line ``before``; 0 if there is none."""
    lines = (line for names, _, line in _assignments(forward) if name in names and line < before)
    return max(lines, default=0)


def _value(attention: nn.Module, expression: ast.expr) -> object:
    """The value of an expression of ``self``.

    Raises:
        LookupError: it depends on more than the module.
    """
    for node in ast.walk(expression):
        known = node.id in ("self", "getattr", "hasattr") if isinstance(node, ast.Name) else True
        call = not isinstance(node, ast.Call) or isinstance(node.func, ast.Name)
        if not isinstance(node, READING) or not known or not call:
            raise LookupError(ast.unparse(expression))
    code = compile(ast.Expression(expression), type(attention).__module__, "eval")
    try:
        return eval(code, {"self": attention})
    except Exception as error:  # whatever a property of the model raises
        raise LookupError(ast.unparse(expression)) from error
