"""What our kernels do for a prompt, phase by phase: FLOPs and bytes as pure functions of sizes.

Everything here is derived: 16-bit values, batch 1, one FLOP a multiplication and one an addition,
causal attention counted as the triangle it is. Element-wise work, activations between operations
and the time to launch kernels are left out, as in the paper's appendix B.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..lookahead import LookaheadConfig
from ..lookahead.catalog import ModelFacts
from ..lookahead.config import ALL_LINEARS

VALUE_BYTES = 2  # weights, activations, keys and values
SCORE_BYTES = 4  # scores and indices
LAQ_WINDOW = 8  # prompt rows in LAQ's second scoring

# roofline: compute and memory overlap, and the longer one counts; serial: they add up; compute and
# memory: that one alone counts; untimed: no printed time contains these FLOPs and bytes.
Timing = Literal["roofline", "serial", "compute", "memory", "untimed"]


@dataclass(frozen=True)
class Phase:
    """A part of the work before the first token that runs by itself.

    Args:
        name: what it does.
        flops: operations.
        bytes: read from and written to the chip's memory.
        timing: how a time follows from the two.
        solved: not derived from the method, but chosen so that the paper's printed cells come out.
    """

    name: str
    flops: int
    bytes: int
    timing: Timing = "roofline"
    solved: bool = False


@dataclass(frozen=True)
class Setting:
    """A model and how its cache is cut; the defaults are the paper's.

    Args:
        model: the model.
        draft: the model that drafts for SpecKV.
        budget: entries kept per KV head.
        window: prompt rows that observe in SnapKV, SpecKV and LAQ; they stay, inside the budget.
        num_lookahead: LookaheadKV's learned rows.
        draft_tokens: tokens that SpecKV and LAQ draft.
        lora_rank: of LookaheadKV's LoRA.
        lora_linears: which of a layer's linear maps have LoRA.

    Raises:
        ValueError: a number below 1, or linear maps that do not exist.
    """

    model: ModelFacts
    draft: ModelFacts | None = None
    budget: int = 128
    window: int = 32
    num_lookahead: int = 32
    draft_tokens: int = 32
    lora_rank: int = 8
    lora_linears: tuple[str, ...] = ALL_LINEARS

    def __post_init__(self) -> None:
        for name in ("budget", "window", "num_lookahead", "draft_tokens", "lora_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        self.lookahead_config()

    def lookahead_config(self) -> LookaheadConfig:
        """The lookahead modules of this setting."""
        return LookaheadConfig(
            model=self.model.shape,
            num_lookahead=self.num_lookahead,
            lora_rank=self.lora_rank,
            lora_linears=self.lora_linears,
        )

    def kept(self, context: int) -> int:
        """How many entries of ``context`` are kept."""
        return min(self.budget, context)

    def observing(self, context: int) -> int:
        """Prompt rows that observe.

        Raises:
            ValueError: the budget cannot hold them.
        """
        if self.window > self.budget:
            raise ValueError(f"budget must be >= window ({self.window}), got {self.budget}")
        return min(self.window, context)

    def drafting(self) -> ModelFacts:
        """The draft model.

        Raises:
            ValueError: there is none.
        """
        if self.draft is None:
            raise ValueError(
                f"method 'speckv' needs a draft model, and none is known for model "
                f"{self.model.name!r}: give draft_model"
            )
        return self.draft


def pair_flops(model: ModelFacts) -> int:
    """FLOPs of attention for one query row and one key, over all layers and heads.

    Half of them are q k^T, half p V.
    """
    shape = model.shape
    return 4 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim


def token_bytes(model: ModelFacts) -> int:
    """Bytes of one token's keys and values, over all layers; half of them are keys."""
    return 2 * kv_rows(model) * model.shape.head_dim * VALUE_BYTES


def kv_rows(model: ModelFacts) -> int:
    """KV heads of all layers."""
    return model.shape.num_hidden_layers * model.shape.num_key_value_heads


def head_parameters(model: ModelFacts) -> int:
    """Weights of the map to the vocabulary."""
    return model.vocab_size * model.shape.hidden_size


def triangle(rows: int) -> int:
    """(query, key) pairs of causal attention."""
    return rows * (rows + 1) // 2


def prefill(model: ModelFacts, context: int, appended: int = 0) -> list[Phase]:
    """One pass over a prompt and rows appended to it, and the logits of the prompt's last row."""
    rows = context + appended
    shape = model.shape
    linear = model.num_linear_parameters
    # Queries and output beside keys and values.
    in_and_out = VALUE_BYTES * 2 * shape.num_hidden_layers * shape.head_dim
    heads = shape.num_attention_heads + shape.num_key_value_heads
    return [
        Phase("linear maps", 2 * linear * rows, VALUE_BYTES * linear + token_bytes(model) * rows),
        Phase("attention", pair_flops(model) * triangle(rows), in_and_out * heads * rows),
        Phase("logits", 2 * head_parameters(model), VALUE_BYTES * head_parameters(model)),
    ]


def decode(model: ModelFacts, cached: int, tokens: int) -> Phase:
    """``tokens`` steps, one row each, on a cache that starts with ``cached`` entries."""
    weights = model.num_linear_parameters + head_parameters(model)
    entries = tokens * cached + triangle(tokens)
    return Phase(
        "decode",
        tokens * 2 * weights + pair_flops(model) * entries,
        tokens * VALUE_BYTES * weights + token_bytes(model) * entries,
    )


def evict(model: ModelFacts, context: int, rows: int, kept: int, sweeps: int = 1) -> list[Phase]:
    """Scores of ``rows`` rows, Top-K, and the gather of what stays.

    Args:
        model: the model.
        context: prompt keys.
        rows: observation rows a query head.
        kept: entries a KV head.
        sweeps: over K: one where the attention left its log-sum-exp, else two.
    """
    scores = SCORE_BYTES * kv_rows(model) * context
    return [
        Phase(
            "scores",
            sweeps * pair_flops(model) // 2 * rows * context,
            sweeps * token_bytes(model) // 2 * context + scores,
        ),
        Phase("select", 0, scores + SCORE_BYTES * kv_rows(model) * kept),
        Phase("gather", 0, 2 * token_bytes(model) * kept),
    ]


def lora(setting: Setting) -> Phase:
    """LoRA on the lookahead rows; its weights and the rows' embeddings are read once."""
    config = setting.lookahead_config()
    weights = config.num_parameters()
    loras = weights - config.num_lookahead * config.model.hidden_size
    return Phase("LoRA", 2 * loras * config.num_lookahead, VALUE_BYTES * weights)


def forward(setting: Setting, context: int) -> list[Phase]:
    """The prompt alone."""
    return prefill(setting.model, context)


def lookaheadkv(setting: Setting, context: int) -> list[Phase]:
    """Lookahead rows appended to the prompt: the weights are read for both at once."""
    rows = setting.num_lookahead
    return [
        *prefill(setting.model, context, appended=rows),
        lora(setting),
        *evict(setting.model, context, rows, setting.kept(context)),
    ]


def lookaheadkv_extend(setting: Setting, context: int) -> list[Phase]:
    """Lookahead rows as a pass of their own over the prompt's cache: all weights are read again."""
    model, rows = setting.model, setting.num_lookahead
    linear = model.num_linear_parameters
    pairs = rows * context + triangle(rows)
    return [
        *prefill(model, context),
        Phase(
            "lookahead rows: linear maps",
            2 * linear * rows,
            VALUE_BYTES * linear + token_bytes(model) * rows,
        ),
        Phase(
            "lookahead rows: attention",
            pair_flops(model) * pairs,
            token_bytes(model) * (context + rows),
        ),
        lora(setting),
        *evict(model, context, rows, setting.kept(context)),
    ]


def snapkv(setting: Setting, context: int) -> list[Phase]:
    """The end of the prompt observes; its rows are there already."""
    rows = setting.observing(context)
    return [
        *prefill(setting.model, context),
        *evict(setting.model, context, rows, setting.kept(context)),
    ]


def speckv(setting: Setting, context: int) -> list[Phase]:
    """A smaller model reads the prompt and drafts; the model reads prompt and draft.

    The draft's first token comes from its prefill: one step fewer than tokens.
    """
    draft, tokens = setting.drafting(), setting.draft_tokens
    rows = setting.observing(context) + tokens
    drafting = [*prefill(draft, context), decode(draft, context, tokens - 1)]
    return [
        *(Phase(f"draft model: {part.name}", part.flops, part.bytes) for part in drafting),
        *prefill(setting.model, context, appended=tokens),
        *evict(setting.model, context, rows, setting.kept(context)),
    ]


def laq(setting: Setting, context: int) -> list[Phase]:
    """SnapKV, a draft from what it left, and a second eviction with the draft's queries.

    Every draft token runs, because its queries are wanted. Their softmax over the whole prompt is
    known from no attention: two sweeps over K.
    """
    model, kept = setting.model, setting.kept(context)
    first = evict(model, context, setting.observing(context), kept)
    rows = min(LAQ_WINDOW, context) + setting.draft_tokens
    second = evict(model, context, rows, kept, sweeps=2)
    return [
        *prefill(model, context),
        *first,
        decode(model, kept, setting.draft_tokens),
        *(Phase(f"second {part.name}", part.flops, part.bytes) for part in second),
    ]


WORKLOADS: Mapping[str, Callable[[Setting, int], list[Phase]]] = {
    "forward": forward,
    "lookaheadkv": lookaheadkv,
    "lookaheadkv-extend": lookaheadkv_extend,
    "snapkv": snapkv,
    "speckv": speckv,
    "laq": laq,
}
