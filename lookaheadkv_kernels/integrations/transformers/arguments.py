"""What a model's attention may ask for besides queries, keys and values: honoured or refused.

Every path that attends to an evictable cache gets its scale from here, so that no argument of
transformers' attention interface is dropped on the way. The same check reads the arguments that a
model's source passes (:mod:`.call_source`), before the first prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from torch import Tensor

# These change neither which keys a row sees nor with what weight. Positions are in the keys.
HARMLESS = frozenset(
    {
        "assistant_tokenizer",
        "cache_position",
        "deterministic",
        "layer_idx",
        "logits_to_keep",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "tokenizer",
        "use_cache",
    }
)
REASONS = {
    "dropout": "evicted entries are attended to without dropout: call model.eval()",
    "is_causal": "only causal attention can be cut",
    "output_attentions": "an evictable cache gives no attention weights",
}


def check_argument(owner: str, name: str, value: object) -> None:
    """Refuse an argument of the attention interface that eviction would otherwise ignore.

    Args:
        owner: who passes it, for the error text.
        name: of the argument.
        value: of the argument; None, False and a dropout of 0 ask for nothing.

    Raises:
        ValueError: the argument would change what attention computes.
    """
    if name == "scaling":
        _check_scaling(owner, value)
        return
    if name == "is_causal":
        fine = value is None or value is True
    else:
        fine = value is None or value is False or name in HARMLESS
    if fine or (name == "dropout" and value == 0):
        return
    reason = REASONS.get(name, "eviction does not support it")
    raise ValueError(f"{owner} attends with {name}={_shown(value)}: {reason}")


def attention_scale(owner: str, head_dim: int, arguments: Mapping[str, object]) -> float:
    """What the logits are multiplied by; every other argument is checked.

    Args:
        owner: the attention module's class, for error texts.
        head_dim: D, whose root is the default, as everywhere in transformers.
        arguments: what the module passed by keyword.

    Raises:
        ValueError: an argument that eviction cannot honour.
    """
    for name, value in arguments.items():
        check_argument(owner, name, value)
    scaling = arguments.get("scaling")
    return head_dim**-0.5 if scaling is None else float(scaling)  # type: ignore[arg-type]


def _check_scaling(owner: str, value: object) -> None:
    if value is None:
        return
    number = float(value) if isinstance(value, int | float) else 0.0
    if isinstance(value, bool) or not isfinite(number) or number <= 0:
        raise ValueError(
            f"{owner} attends with scaling={_shown(value)}: eviction takes one positive number"
        )


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    return repr(value) if isinstance(value, bool | int | float | str) else type(value).__name__
