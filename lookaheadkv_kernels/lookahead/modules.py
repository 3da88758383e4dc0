"""The trainable part: lookahead embeddings and their LoRA (paper section 3.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .config import LookaheadConfig


class LoRA(nn.Module):
    """A low-rank addition to one linear map: ``x A^T B^T * alpha / r``, zero before training."""

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.scaling = alpha / rank
        self.lora_A = nn.Linear(in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], in the dtype and on the device of ``x``."""
        down = nn.functional.linear(x, self.lora_A.weight.to(x))
        return nn.functional.linear(down, self.lora_B.weight.to(x)) * self.scaling

    def extra_repr(self) -> str:
        """Its scaling; the sizes are those of its two maps."""
        return f"scaling={self.scaling:g}"

    def add_to(self, output: Tensor, x: Tensor) -> None:
        """``output`` [B, n, out_features] += forward(``x``), in place and in two products.

        On a GPU every operation is a launch, and a layer has seven of these.
        """
        down = nn.functional.linear(x, self.lora_A.weight.to(x))
        up = self.lora_B.weight.to(x).t().expand(len(x), -1, -1)
        output.baddbmm_(down, up, alpha=self.scaling)


class LookaheadModules(nn.Module):
    """Lookahead embeddings [num_lookahead, hidden_size] and one LoRA per linear map.

    The modules know nothing of the model's classes: an integration adds ``lora(layer, name)`` to
    the outputs of the lookahead rows.
    """

    def __init__(self, config: LookaheadConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.Parameter(torch.zeros(config.num_lookahead, config.model.hidden_size))
        layers: list[dict[str, LoRA]] = [{} for _ in range(config.model.num_hidden_layers)]
        for layer, name, size_in, size_out in config.loras():
            layers[layer][name] = LoRA(size_in, size_out, config.lora_rank, config.lora_alpha)
        self.layers = nn.ModuleList(nn.ModuleDict(loras) for loras in layers)

    @torch.no_grad()
    def reset_parameters(self, embedding_std: float, generator: torch.Generator) -> None:
        """Initialise for training: embeddings N(0, embedding_std), A Kaiming-uniform, B zero."""
        self.embeddings.normal_(std=embedding_std, generator=generator)
        for module in self.modules():
            if isinstance(module, LoRA):
                bound = 1.0 / math.sqrt(module.lora_A.in_features)
                module.lora_A.weight.uniform_(-bound, bound, generator=generator)
                module.lora_B.weight.zero_()

    def __repr__(self) -> str:
        """What they are for and how large; not the hundreds of modules below."""
        config = self.config
        linears = ", ".join(config.lora_linears) or "no linear map"
        weights = self.embeddings
        return (
            f"LookaheadModules({config.num_lookahead} lookahead tokens, LoRA of rank "
            f"{config.lora_rank} and alpha {config.lora_alpha:g} on {linears}; for "
            f"{config.model.model_type} with {config.model.num_hidden_layers} layers of "
            f"{config.model.hidden_size}; {config.num_parameters():,} parameters, "
            f"{str(weights.dtype).removeprefix('torch.')} on {weights.device})"
        )

    def lora(self, layer: int, name: str) -> LoRA | None:
        """The LoRA of one linear map, or None if it has none."""
        loras = self.layers[layer]
        assert isinstance(loras, nn.ModuleDict)
        found = loras[name] if name in loras else None  # noqa: SIM401 (it has no get)
        assert found is None or isinstance(found, LoRA)
        return found
