"""Sizes of known models, shipped as data: the paper's six, and the one with packaged weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

from .config import ModelShape

_FOLDER = Path(__file__).parent / "models"


@dataclass(frozen=True)
class ModelFacts:
    """One known model."""

    name: str
    shape: ModelShape
    vocab_size: int
    tie_word_embeddings: bool
    query_key_norm: bool  # Qwen3 normalises each head's queries and keys

    @property
    def num_linear_parameters(self) -> int:
        """Weights of the linear maps of all layers."""
        shape = self.shape
        per_layer = sum(
            size_in * size_out
            for size_in, size_out in map(
                shape.linear_size,
                ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            )
        )
        return shape.num_hidden_layers * per_layer

    @property
    def num_parameters(self) -> int:
        """All parameters: linear maps, embeddings, norms."""
        shape = self.shape
        tables = 1 if self.tie_word_embeddings else 2
        norms = (2 * shape.num_hidden_layers + 1) * shape.hidden_size
        if self.query_key_norm:
            norms += 2 * shape.num_hidden_layers * shape.head_dim
        return self.num_linear_parameters + tables * self.vocab_size * shape.hidden_size + norms


def model_names() -> list[str]:
    """Names of the known models, in the paper's order."""
    paths = sorted(_FOLDER.glob("*.json"), key=lambda path: json.loads(path.read_text())["order"])
    return [path.stem for path in paths]


def model_facts(name: str) -> ModelFacts:
    """Sizes of a known model.

    Raises:
        ValueError: it is not known.
    """
    path = _FOLDER / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"unknown model {name!r}; known: {', '.join(model_names())}")
    data = json.loads(path.read_text())
    shape = ModelShape(**{entry.name: data[entry.name] for entry in fields(ModelShape)})
    return ModelFacts(
        name,
        shape,
        data["vocab_size"],
        data["tie_word_embeddings"],
        data.get("query_key_norm", False),
    )
