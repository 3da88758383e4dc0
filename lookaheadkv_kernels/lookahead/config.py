"""What a set of lookahead modules is made for: a model's shapes, and where LoRA is applied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from typing import Any

FORMAT_VERSION = 1
ATTENTION_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_LINEARS = ("gate_proj", "up_proj", "down_proj")
ALL_LINEARS = (*ATTENTION_LINEARS, *MLP_LINEARS)
# A score depends on the last layer only through its queries and keys: LoRA on its value, output and
# MLP projections could not change any.
LAST_LAYER_LINEARS = ("q_proj", "k_proj")


def _check_count(where: str, name: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{where}: {name} must be a whole number >= 1, got {value!r}")


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder that lookahead modules must match."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Any) -> ModelShape:
        """Read the sizes from a transformers config (or any object with its attribute names).

        Raises:
            ValueError: the config lacks one of the sizes.
        """
        values: dict[str, Any] = {}
        for entry in fields(cls):
            value = getattr(config, entry.name, None)
            if value is None and entry.name == "head_dim":
                value = config.hidden_size // config.num_attention_heads
            if value is None:
                raise ValueError(
                    f"lookahead modules: {type(config).__name__} has no {entry.name!r}; only plain "
                    "decoder models (Llama, Mistral, Qwen2, Qwen3 and their like) are supported"
                )
            values[entry.name] = value
        return cls(**values)

    def __post_init__(self) -> None:
        for entry in fields(self):
            if entry.name != "model_type":
                _check_count("ModelShape", entry.name, getattr(self, entry.name))

    def linear_size(self, name: str) -> tuple[int, int]:
        """(in_features, out_features) of one of a layer's linear maps."""
        query, kv = (
            heads * self.head_dim for heads in (self.num_attention_heads, self.num_key_value_heads)
        )
        return {
            "q_proj": (self.hidden_size, query),
            "k_proj": (self.hidden_size, kv),
            "v_proj": (self.hidden_size, kv),
            "o_proj": (query, self.hidden_size),
            "gate_proj": (self.hidden_size, self.intermediate_size),
            "up_proj": (self.hidden_size, self.intermediate_size),
            "down_proj": (self.intermediate_size, self.hidden_size),
        }[name]


@dataclass(frozen=True)
class LookaheadConfig:
    """Hyper-parameters of lookahead modules (paper section 4.1) and the model they belong to.

    Args:
        model: sizes of the model.
        num_lookahead: learned tokens behind the prompt (the paper's n_lookahead).
        lora_rank: r of every LoRA.
        lora_alpha: LoRA outputs are scaled by ``lora_alpha / lora_rank``.
        lora_linears: which of a layer's linear maps have LoRA; () trains the embeddings alone.
    """

    model: ModelShape
    num_lookahead: int = 32
    lora_rank: int = 8
    lora_alpha: float = 32.0
    lora_linears: tuple[str, ...] = field(default=ALL_LINEARS)

    def __post_init__(self) -> None:
        for name in ("num_lookahead", "lora_rank"):
            _check_count("LookaheadConfig", name, getattr(self, name))
        alpha = self.lora_alpha
        if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not isfinite(alpha):
            raise ValueError(f"LookaheadConfig: lora_alpha must be a number, got {alpha!r}")
        if len(set(self.lora_linears)) != len(self.lora_linears):
            raise ValueError(
                f"LookaheadConfig: lora_linears names one twice: {', '.join(self.lora_linears)}"
            )
        for linear in self.lora_linears:
            if linear not in ALL_LINEARS:
                raise ValueError(
                    f"LookaheadConfig: lora_linears must be among {', '.join(ALL_LINEARS)}, "
                    f"got {linear!r}"
                )

    def linears(self, layer: int) -> tuple[str, ...]:
        """Names of the linear maps of ``layer`` that have LoRA."""
        if layer == self.model.num_hidden_layers - 1:
            return tuple(name for name in self.lora_linears if name in LAST_LAYER_LINEARS)
        return self.lora_linears

    def loras(self) -> Iterator[tuple[int, str, int, int]]:
        """(layer, name, in_features, out_features) of every LoRA."""
        for layer in range(self.model.num_hidden_layers):
            for name in self.linears(layer):
                yield (layer, name, *self.model.linear_size(name))

    def num_parameters(self) -> int:
        """Trainable parameters (paper table 1)."""
        loras = sum(
            self.lora_rank * (size_in + size_out) for _, _, size_in, size_out in self.loras()
        )
        return self.num_lookahead * self.model.hidden_size + loras

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; :meth:`from_dict` reads it back."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LookaheadConfig:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: another format version, or fields that are missing or unknown.
        """
        values = dict(data)
        version = values.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ValueError(
                f"lookahead config: format_version must be {FORMAT_VERSION}, got {version!r}"
            )
        try:
            model = ModelShape(**values.pop("model"))
            linears = tuple(values.pop("lora_linears"))
            return cls(model=model, lora_linears=linears, **values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"lookahead config: {error}") from error
