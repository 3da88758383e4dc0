"""Whose keys and values a cache holds."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Owner:
    """The model that filled a cache, and the sizes that its entries have.

    A pickled cache forgets which model object it was of, and remembers the sizes.
    """

    kind: str  # class of the decoder
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device  # of the first weights, at rest
    decoder: Callable[[], nn.Module | None] | None = None  # a weak reference

    @classmethod
    def of(cls, decoder: Any) -> Owner:
        """What a decoder's caches are like."""
        config = decoder.config
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None)
        return cls(
            type(decoder).__name__,
            config.num_hidden_layers,
            getattr(config, "num_key_value_heads", None) or heads,
            config.hidden_size // heads if head_dim is None else head_dim,
            decoder.dtype,
            decoder.device,
            weakref.ref(decoder),
        )

    def check(self, model: Owner) -> None:
        """Refuse to go on with another model than the one that filled the cache.

        Raises:
            ValueError: names every size that differs.
        """
        names = [entry.name for entry in fields(self) if entry.name != "decoder"]
        differing = [
            f"{name}={getattr(self, name)} (the model has {getattr(model, name)})"
            for name in names
            if getattr(self, name) != getattr(model, name)
        ]
        same = self.decoder is None or model.decoder is None or self.decoder() is model.decoder()
        if not same and not differing:
            differing = [f"another {self.kind} of the same sizes"]
        if not same:
            raise ValueError(f"the cache is of another model: {', '.join(differing)}")
        if differing:
            raise ValueError(
                f"the cache no longer fits the model that filled it: {', '.join(differing)}"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        values = [getattr(self, entry.name) for entry in fields(self) if entry.name != "decoder"]
        return type(self), tuple(values)

    def __deepcopy__(self, memo: dict[int, Any]) -> Owner:
        return self
