"""Which lookahead modules a sweep trains, and on what."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lookaheadkv_kernels.lookahead import LookaheadConfig, LookaheadModules, ModelShape
from lookaheadkv_kernels.lookahead.config import ALL_LINEARS
from lookaheadkv_kernels.training.recipe import Recipe
from lookaheadkv_kernels.training.trainer import Sample, without_middle

# As the paper's table 3 names them.
PLACEMENTS: dict[str, tuple[str, ...]] = {
    "emb-only": (),
    "QV": ("q_proj", "v_proj"),
    "all": tuple(ALL_LINEARS),
}
RESPONSES = ("recipe", "source", "generated")


@dataclass(frozen=True)
class Variant:
    """One set of modules, and how it is trained.

    Attributes:
        num_lookahead: learned tokens.
        placement: which linear maps have LoRA.
        max_prompt: prompts are as long as this at most.
        responses: ``recipe`` takes them as they come; ``source`` and ``generated`` take the
            prompts whose text has a response, and train on that one or on the model's own.
    """

    num_lookahead: int = 32
    placement: str = "all"
    max_prompt: int = 1024
    responses: str = "recipe"

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise ValueError(f"placement must be among {list(PLACEMENTS)}, got {self.placement!r}")
        if self.responses not in RESPONSES:
            raise ValueError(f"responses must be among {RESPONSES}, got {self.responses!r}")

    @property
    def name(self) -> str:
        """The variant's folder, and its name in the results."""
        return f"{self.num_lookahead}-{self.placement}-{self.max_prompt}-{self.responses}"

    @property
    def data(self) -> tuple[int, str]:
        """What the samples depend on: variants with equal data train on the same samples."""
        return self.max_prompt, self.responses

    def modules(self, model: Any) -> LookaheadModules:
        """New modules; those of all variants are drawn with the same seed."""
        modules = LookaheadModules(
            LookaheadConfig(
                model=ModelShape.of(model.config),
                num_lookahead=self.num_lookahead,
                lora_linears=PLACEMENTS[self.placement],
            )
        )
        std = float(model.get_input_embeddings().weight.detach().float().std())
        modules.reset_parameters(std, torch.Generator().manual_seed(0))
        return modules.train().requires_grad_(True)


def variants_of(spec: dict[str, Any]) -> list[Variant]:
    """All combinations of what a sweep varies; the rest is the training's or the default."""
    fixed = {name: spec["training"][name] for name in ("max_prompt",) if name in spec["training"]}
    names = list(spec["variants"])
    return [
        Variant(**{**fixed, **dict(zip(names, values, strict=True))})
        for values in itertools.product(*spec["variants"].values())
    ]


def samples_of(variant: Variant, tokenizer: Any) -> Iterator[tuple[list[int], list[int] | None]]:
    """Endless (prompt, response or None for the model's own) pairs, the same every time."""
    recipe = Recipe(tokenizer, seed=0, max_tokens=variant.max_prompt)
    for sample in recipe:
        if variant.responses == "recipe" or sample.response_ids is not None:
            yield _pair(sample, variant)


def _pair(sample: Sample, variant: Variant) -> tuple[list[int], list[int] | None]:
    response = sample.response_ids
    if variant.responses == "generated":
        response = None
    prompt = without_middle(sample.prompt_ids, variant.max_prompt)
    return prompt, None if response is None else list(response)
