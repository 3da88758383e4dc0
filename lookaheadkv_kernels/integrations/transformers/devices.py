"""Where the parts of a model run: its layers may lie on several devices, in memory or on disk."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...lookahead import LookaheadModules
from .compat import decoder_layers, linear


def execution_device(module: nn.Module) -> torch.device:
    """Where a module computes: accelerate's hook says so, else its weights do.

    Offloaded weights are meta tensors at rest, and come to the hook's device for each pass.
    """
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            device = getattr(one, "execution_device", None)
            if device is not None:
                return _device(device)
    weights = next(module.parameters(), None)
    return torch.device("cpu") if weights is None else weights.device


def _device(device: Any) -> torch.device:
    """accelerate names accelerators by number, too."""
    if isinstance(device, int):
        accelerator = torch.accelerator.current_accelerator()
        return torch.device("cuda" if accelerator is None else accelerator.type, device)
    return torch.device(device)


def input_device(model: Any) -> torch.device:
    """Where a model's token ids belong: with its input embeddings."""
    return execution_device(model.get_input_embeddings())


def place_modules(modules: LookaheadModules, model: Any) -> LookaheadModules:
    """Put the embeddings where the model's are, and every LoRA where its linear map runs."""
    _move(modules, input_device(model), model.dtype)
    layers = decoder_layers(model)
    for index, name, _, _ in modules.config.loras():
        lora = modules.lora(index, name)
        assert lora is not None
        device = execution_device(linear(layers[index], name))
        for part in (lora.lora_A, lora.lora_B):
            _move(part, device, model.dtype)
    return modules


def _move(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Replace a module's own parameters, those of its parts excepted."""
    for name, old in list(module.named_parameters(recurse=False)):
        new = nn.Parameter(old.detach().to(device, dtype), requires_grad=old.requires_grad)
        setattr(module, name, new)
