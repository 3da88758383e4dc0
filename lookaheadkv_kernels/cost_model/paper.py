"""What the paper counts (appendix B; tables 2 and 5), and the cells it prints.

Attention is counted as the full square, without the causal half. The formulas are not in the paper.
Terms are *derived* where they follow from the method and the paper's description, and *solved*
(:attr:`.Phase.solved`) where a simple term was chosen so that the printed cells come out: others
may fit as well, and what such a term stands for is a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from .models import find_draft, find_model
from .workload import (
    VALUE_BYTES,
    Phase,
    Setting,
    head_parameters,
    pair_flops,
    token_bytes,
    triangle,
)

# Solved: memory traffic of scoring, per prompt token, layer and query head. With q k^T of the
# window beside it, 21,488 to 21,519 bytes a token of LLaMA-3.1-8B give the printed cells:
# 21 * 32 * 32 is 21,504.
SCORING_BYTES = 21


def _square(setting: Setting, context: int) -> Phase:
    """Derived. Time is compute alone, as the paper says; the weights show in the traffic."""
    model = setting.model
    linear = model.num_linear_parameters
    return Phase(
        "forward",
        2 * linear * context + pair_flops(model) * context**2,
        VALUE_BYTES * linear,
        "compute",
    )


def _scoring(setting: Setting, context: int) -> Phase:
    """Solved: q k^T of the window's rows, and traffic that grows with the prompt."""
    model = setting.model
    heads = model.shape.num_hidden_layers * model.shape.num_attention_heads
    return Phase(
        "scores",
        pair_flops(model) // 2 * setting.observing(context) * context,
        SCORING_BYTES * heads * context,
        "serial",
        solved=True,
    )


def _kept(setting: Setting, context: int, times: int = 1) -> Phase:
    """Derived: the kept entries are written."""
    return Phase(
        "kept cache", 0, times * token_bytes(setting.model) * setting.kept(context), "serial"
    )


def forward(setting: Setting, context: int) -> list[Phase]:
    """The prompt alone. Derived."""
    return [_square(setting, context)]


def lookaheadkv(setting: Setting, context: int) -> list[Phase]:
    """Lookahead rows through the model, their attention to the prompt, LoRA's weights. Derived."""
    model, rows = setting.model, setting.num_lookahead
    return [
        _square(setting, context),
        Phase(
            "lookahead rows",
            2 * model.num_linear_parameters * rows + pair_flops(model) * rows * context,
            VALUE_BYTES * setting.lookahead_config().num_parameters(),
            "serial",
        ),
        _kept(setting, context),
    ]


def snapkv(setting: Setting, context: int) -> list[Phase]:
    """Only the kept cache: the paper takes the window's scores as computed already. Derived."""
    return [_square(setting, context), _kept(setting, context)]


def speckv(setting: Setting, context: int) -> list[Phase]:
    """Draft prefill and draft decoding derived; what the draft costs in the model solved.

    The draft's rows through the model's linear maps are in the printed FLOPs, and in no printed
    time. Of their attention to the prompt half the FLOPs are in both.
    """
    model, draft, tokens = setting.model, setting.drafting(), setting.draft_tokens
    weights = draft.num_linear_parameters
    return [
        Phase(
            "draft prefill",
            2 * weights * context + pair_flops(draft) * context**2,
            VALUE_BYTES * weights,
            "compute",
        ),
        Phase(
            "draft decoding",
            tokens * 2 * weights + pair_flops(draft) * tokens * context,
            tokens * VALUE_BYTES * weights
            + token_bytes(draft) * (tokens * context + triangle(tokens)),
            "memory",
        ),
        _square(setting, context),
        Phase("draft rows", 2 * model.num_linear_parameters * tokens, 0, "untimed", solved=True),
        Phase(
            "draft rows: attention",
            pair_flops(model) // 2 * tokens * context,
            0,
            "serial",
            solved=True,
        ),
        _scoring(setting, context),
        _kept(setting, context),
    ]


def laq(setting: Setting, context: int) -> list[Phase]:
    """Decoding from the kept cache derived; the second eviction solved.

    A second reading of the weights is in the printed traffic, and in no printed time. Decoding
    gives its traffic; its FLOPs are nowhere, or among those of the window's and the draft's rows.
    """
    model, tokens = setting.model, setting.draft_tokens
    linear = model.num_linear_parameters
    rows = setting.observing(context) + tokens
    return [
        _square(setting, context),
        _kept(setting, context, times=2),
        Phase(
            "decoding",
            0,
            tokens * VALUE_BYTES * linear
            + token_bytes(model) * (tokens * setting.kept(context) + triangle(tokens)),
            "memory",
        ),
        Phase(
            "window and draft rows",
            2 * linear * rows
            + pair_flops(model) * tokens * context
            + 2 * head_parameters(model) * tokens,
            2 * token_bytes(model) * context,
            "serial",
            solved=True,
        ),
        Phase("weights, again", 0, VALUE_BYTES * linear, "untimed", solved=True),
        _scoring(setting, context),
    ]


WORKLOADS: Mapping[str, Callable[[Setting, int], list[Phase]]] = {
    "forward": forward,
    "lookaheadkv": lookaheadkv,
    "snapkv": snapkv,
    "speckv": speckv,
    "laq": laq,
}


class Cells(NamedTuple):
    """The theoretical cells of one row of table 5, as printed."""

    compute: str  # TFLOPs
    traffic: str  # GB
    ttft: str  # ms
    overhead: str | None  # ms


# (context, method). Table 2 is the rows of 8,192 and 32,768 among them.
TABLE_5: Mapping[tuple[int, str], Cells] = {
    (4096, "forward"): Cells("60", "13", "113", None),
    (4096, "lookaheadkv"): Cells("60", "13", "114", "0.92"),
    (4096, "snapkv"): Cells("60", "13", "113", "0.01"),
    (4096, "speckv"): Cells("70", "77", "165", "52.10"),
    (4096, "laq"): Cells("61", "444", "347", "233.81"),
    (8192, "forward"): Cells("136", "13", "257", None),
    (8192, "lookaheadkv"): Cells("137", "13", "258", "1.03"),
    (8192, "snapkv"): Cells("136", "13", "257", "0.01"),
    (8192, "speckv"): Cells("159", "81", "337", "79.53"),
    (8192, "laq"): Cells("137", "445", "492", "234.59"),
    (16384, "forward"): Cells("336", "13", "635", None),
    (16384, "lookaheadkv"): Cells("337", "13", "636", "1.27"),
    (16384, "snapkv"): Cells("336", "13", "635", "0.01"),
    (16384, "speckv"): Cells("398", "89", "792", "157.05"),
    (16384, "laq"): Cells("337", "447", "871", "236.15"),
    (32768, "forward"): Cells("928", "13", "1754", None),
    (32768, "lookaheadkv"): Cells("929", "13", "1755", "1.74"),
    (32768, "snapkv"): Cells("928", "13", "1754", "0.01"),
    (32768, "speckv"): Cells("1115", "106", "2156", "402.80"),
    (32768, "laq"): Cells("930", "406", "1993", "239.26"),
}


def paper_setting() -> Setting:
    """The setting of the paper's tables."""
    model = find_model("llama-3.1-8b")
    return Setting(model, find_draft(model))
