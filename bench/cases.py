"""Inputs of the benchmarks: random, fresh, at the shapes of real models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lookaheadkv_kernels.lookahead import catalog

PROMPTS = (4096, 8192, 16_384, 32_768, 65_536, 131_072)
BUDGETS = (64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True)
class Case:
    """The sizes of one attention layer, batch 1."""

    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    num_rows: int = 32
    num_prompt: int = 32_768
    dtype: torch.dtype = torch.bfloat16

    @property
    def num_keys(self) -> int:
        return self.num_prompt + self.num_rows

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def query_bytes(self) -> int:
        """Bytes of the query, or of the attention output."""
        return self.num_heads * self.num_rows * self.head_dim * self.dtype.itemsize

    @property
    def key_bytes(self) -> int:
        """Bytes of K, or of V."""
        return self.num_kv_heads * self.num_keys * self.head_dim * self.dtype.itemsize

    @property
    def score_bytes(self) -> int:
        """Bytes of the float32 scores."""
        return 4 * self.num_kv_heads * self.num_prompt

    @property
    def score_flops(self) -> int:
        """FLOPs of q k^T."""
        return 2 * self.num_heads * self.num_rows * self.num_keys * self.head_dim

    def inputs(
        self, seed: int = 0, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """query [1, Hq, L, D], key and value [1, Hkv, N + L, D]."""
        generator = torch.Generator().manual_seed(seed)

        def normal(heads: int, length: int) -> Tensor:
            drawn = torch.randn(1, heads, length, self.head_dim, generator=generator)
            return drawn.to(device, self.dtype)

        return (
            normal(self.num_heads, self.num_rows),
            normal(self.num_kv_heads, self.num_keys),
            normal(self.num_kv_heads, self.num_keys),
        )


LLAMA_8B = Case()


def paper_shapes() -> dict[str, Case]:
    """The attention layers of the paper's six models; models that share one are named together."""
    names: dict[Case, list[str]] = {}
    for name in catalog.model_names():
        if name.startswith("smollm2"):
            continue
        shape = catalog.model_facts(name).shape
        case = Case(shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim)
        names.setdefault(case, []).append(name)
    return {"+".join(models): case for case, models in names.items()}


@dataclass(frozen=True)
class Point:
    """One setting that the latency suite measures."""

    models: str
    num_prompt: int
    budgets: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16

    @property
    def case(self) -> Case:
        """The layer at this length."""
        shape = paper_shapes()[self.models]
        return Case(
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            num_prompt=self.num_prompt,
            dtype=self.dtype,
        )

    @property
    def label(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{self.models}-N{self.num_prompt}-{name}"


def grid(
    full: bool,
    prompts: Sequence[int] = (),
    dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float32),
) -> list[Point]:
    """Every point of the full set, or the few of the short one.

    Short: all shapes at 4K with one budget, and Llama-3.1-8B's at 16K with the smallest and the
    largest; other dtypes than the first at 4K alone.

    Args:
        full: whether to take the full set.
        prompts: lengths in place of the set's.
        dtypes: the usual one first.
    """
    shapes = paper_shapes()
    usual, *others = dtypes
    if full:
        return [
            Point(models, length, BUDGETS, dtype)
            for models in shapes
            for length in prompts or PROMPTS
            for dtype in dtypes
        ]
    llama = next(
        models
        for models, case in shapes.items()
        if case.head_dim == LLAMA_8B.head_dim and case.num_heads == LLAMA_8B.num_heads
    )
    if prompts:
        return [Point(llama, length, (128,), usual) for length in prompts]
    return [
        *(Point(models, PROMPTS[0], (128,), usual) for models in shapes),
        *(Point(llama, PROMPTS[0], (128,), dtype) for dtype in others),
        Point(llama, PROMPTS[2], (BUDGETS[0], BUDGETS[-1]), usual),
    ]
