"""The model that the experiments are run on."""

from __future__ import annotations

from typing import Any

import torch

from lookaheadkv_kernels.integrations.transformers.attention import attach
from lookaheadkv_kernels.integrations.transformers.loading import load
from lookaheadkv_kernels.integrations.transformers.weights import find_modules
from lookaheadkv_kernels.lookahead import LookaheadModules, load_modules
from lookaheadkv_kernels.lookahead.files import weights_sha256
from lookaheadkv_kernels.policies import Policy, make_policy


class Subject:
    """A model, its tokenizer, and its trained modules.

    Args:
        model: see :func:`~lookaheadkv_kernels.integrations.transformers.loading.load`.
        weights: packaged name or folder of the modules; None: those of the model's name.
        dtype: of the model.
    """

    def __init__(self, model: str, weights: str | None, dtype: str) -> None:
        self.name, self.weights, self.dtype = model, weights or model, dtype
        self.model, self.tokenizer = load(model, dtype=getattr(torch, dtype))
        attach(self.model)

    def modules(self) -> LookaheadModules:
        """The trained modules, in the model's dtype."""
        return load_modules(find_modules(self.weights)).to(self.model.dtype)

    def policies(self, names: list[str]) -> dict[str, Policy]:
        """Policies by their names."""
        options: dict[str, dict[str, Any]] = {"lookahead": {}}
        if "lookahead" in names:
            options["lookahead"]["modules"] = self.modules()
        return {name: make_policy(name, **options.get(name, {})) for name in names}

    def facts(self) -> dict[str, Any]:
        """What results depend on."""
        return {"model": self.name, "dtype": self.dtype}

    def weights_sha256(self) -> str:
        """Checksum of the trained modules."""
        return weights_sha256(find_modules(self.weights))
