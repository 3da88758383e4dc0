"""The model that a subcommand names: what can be known of it is known before it is loaded."""

from __future__ import annotations

import argparse
import importlib.util
import os
from typing import Any


class ModelFiles:
    """A model's configuration and tokenizer, read; its weights, to be loaded when all is checked.

    Args:
        name: as ``--model`` has it.
        dtype: of the weights, e.g. ``bfloat16``.
        device: as ``--device`` has it.
        attended: it gets our attention; otherwise any model of transformers will do.

    Raises:
        ValueError: there is no such model, it is of an unsupported kind, or a device that this
            machine does not have.
    """

    def __init__(self, name: str, *, dtype: str, device: str, attended: bool = True) -> None:
        import torch
        from transformers import AutoConfig

        from ..integrations.transformers import loading

        self.name, self._attended = name, attended
        self._device = device_of(device)
        check_device(self._device)
        self._dtype = getattr(torch, dtype)
        try:
            self.config = AutoConfig.from_pretrained(**loading._where(name))
            self.tokenizer = loading.load_tokenizer(name)
        except (OSError, ValueError) as error:
            # Not every such error of transformers says which model it is about.
            reason = " ".join(str(error).split())
            raise ValueError(f"model {name!r} cannot be read: {reason}") from error
        if attended:
            _check_structure(self.config)

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
        """The model itself, in eval mode."""
        from ..integrations.transformers.attention import attach
        from ..integrations.transformers.loading import load

        model, _ = load(self.name, dtype=self._dtype, device=self._device)
        if self._attended:
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


def check_installed(extra: str, *modules: str) -> None:
    """Refuse to begin what would end for want of a package.

    Raises:
        ModuleNotFoundError: names the package, and the extra that brings it.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(
                f"{module} is missing: pip install 'lookaheadkv-kernels[{extra}]'"
            )


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
