"""Finds a model's sizes: shipped ones by name, a folder's config.json, a config of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..lookahead import ModelShape, catalog
from ..lookahead.catalog import ModelFacts

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def find_model(name: str) -> ModelFacts:
    """Sizes of a model; no weights are read.

    Args:
        name: of a known model, a folder with ``config.json``, or ``owner/name`` on the hub (through
            transformers).

    Raises:
        ValueError: there is no such model, or it is not a plain decoder.
        FileNotFoundError: a folder without ``config.json``.
    """
    if name in catalog.model_names():
        return catalog.model_facts(name)
    if Path(name).is_dir():
        return _facts(name, _folder_config(Path(name)))
    # The hub is asked only for what can be its name: a misspelt one should not wait for a network.
    if name.count("/") == 1:
        return _facts(name, _hub_config(name))
    raise ValueError(
        f"unknown model {name!r}; give a folder with config.json, owner/name on the hub, or one of "
        f"{', '.join(catalog.model_names())}"
    )


def find_draft(model: ModelFacts) -> ModelFacts | None:
    """The smallest known model of the same family and vocabulary, if it is smaller than ``model``.

    For the paper's LLaMA-3.1-8B that is LLaMA-3.2-1B, the paper's choice.
    """
    relatives = [
        facts
        for facts in map(catalog.model_facts, catalog.model_names())
        if facts.shape.model_type == model.shape.model_type
        and facts.vocab_size == model.vocab_size
        and facts.num_parameters < model.num_parameters
    ]
    return min(relatives, key=lambda facts: facts.num_parameters, default=None)


def _folder_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: not a JSON object")
    return config


def _hub_config(name: str) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        config: dict[str, Any] = AutoConfig.from_pretrained(name).to_dict()
    except OSError as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"unknown model {name!r}: no such folder, and the hub: {first}") from error
    return config


def _facts(name: str, config: dict[str, Any]) -> ModelFacts:
    """Read off a config, or off the text part of one.

    Raises:
        ValueError: it lacks a size, or layers are not all alike, dense and of full attention.
    """
    config = config.get("text_config") or config
    if any(config.get(key) for key in _EXPERTS):
        raise ValueError(f"model {name!r} is a mixture of experts: only dense ones are modelled")
    kinds = set(config.get("layer_types") or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(f"model {name!r}: only full attention is modelled, got {sorted(kinds)}")
    for key in ("vocab_size", "num_attention_heads"):
        if config.get(key) is None:
            raise ValueError(f"the config of model {name!r} has no {key!r}")
    if config.get("num_key_value_heads") is None:
        # Configs from before grouped queries do not say that every query head has its own.
        config = {**config, "num_key_value_heads": config["num_attention_heads"]}
    try:
        shape = ModelShape.of(SimpleNamespace(**config))
    except ValueError as error:
        raise ValueError(f"model {name!r}: {error}") from error
    return ModelFacts(
        name,
        shape,
        config["vocab_size"],
        bool(config.get("tie_word_embeddings")),
        shape.model_type == "qwen3",
    )
