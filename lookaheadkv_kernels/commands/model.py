"""The model that a subcommand names: what can be known of it is known before it is loaded."""

from __future__ import annotations

import argparse
import os
from typing import Any


class ModelFiles:
    """A model's configuration and tokenizer, read; its weights, to be loaded when all is checked.

    Args:
        name: as ``--model`` has it.
        dtype: of the weights, e.g. ``bfloat16``.
        device: as ``--device`` has it.

    Raises:
        OSError: there is no such model.
        ValueError: a device that this machine does not have, or a model of an unsupported kind.
    """

    def __init__(self, name: str, *, dtype: str, device: str) -> None:
        import torch
        from transformers import AutoConfig

        from ..integrations.transformers import loading

        self.name = name
        self._device = device_of(device)
        check_device(self._device)
        self._dtype = getattr(torch, dtype)
        self.config = AutoConfig.from_pretrained(**loading._where(name))
        _check_structure(self.config)
        self.tokenizer = loading.load_tokenizer(name)

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> ModelFiles:
        """Those that a subcommand's options name."""
        return cls(arguments.model, dtype=arguments.dtype, device=arguments.device)

    @property
    def positions(self) -> int | None:
        """Tokens that the model was made for at most; None: it does not say."""
        most: int | None = getattr(self.config, "max_position_embeddings", None)
        return most

    def load(self) -> Any:
        """The model itself, in eval mode and with our attention attached."""
        from ..integrations.transformers.attention import attach
        from ..integrations.transformers.loading import load

        model, _ = load(self.name, dtype=self._dtype, device=self._device)
        attach(model)
        return model


def _check_structure(config: Any) -> None:
    """Refuse what eviction does not support, on a model without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    from ..integrations.transformers.structure import check_supported

    with torch.device("meta"):
        check_supported(AutoModelForCausalLM.from_config(config))


def device_of(device: str) -> str:
    """The device of this process: under torchrun each one takes its own GPU."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and launched() else device


def launched() -> bool:
    """Whether torchrun started this process."""
    return "LOCAL_RANK" in os.environ


def is_main() -> bool:
    """Whether this process is the one that speaks for all of them."""
    return os.environ.get("RANK", "0") == "0"


def check_device(name: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        ValueError: names it, and what there is.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda, cuda:1 and the like, got {name!r}") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ValueError(f"device {name!r} is not there: torch finds {count} CUDA devices")
