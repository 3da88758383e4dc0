"""LoRA on the lookahead rows alone, by forward hooks: the model's classes and weights stay."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from ...lookahead import LookaheadModules, LoRA
from .compat import decoder_layers, linear
from .compiled import uncompiled


@contextmanager
def lora_on_last_rows(model: nn.Module, modules: LookaheadModules) -> Iterator[None]:
    """Within the block every forward treats its last ``num_lookahead`` rows as lookahead tokens.

    The LoRA's output is added to their rows of each linear map's output [B, S, out]; all other
    rows are the base model's own.
    """
    with ExitStack() as stack:
        stack.enter_context(uncompiled())
        for index, layer in enumerate(decoder_layers(model)):
            stack.enter_context(lora_on_layer(layer, index, modules))
        yield


@contextmanager
def lora_on_layer(layer: Any, index: int, modules: LookaheadModules) -> Iterator[None]:
    """The same for one decoder layer."""
    rows = modules.config.num_lookahead
    thread = threading.get_ident()
    handles = []
    try:
        for name in modules.config.linears(index):
            lora = modules.lora(index, name)
            assert lora is not None
            handles.append(linear(layer, name).register_forward_hook(_hook(lora, rows, thread)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(lora: LoRA, rows: int, thread: int) -> Any:
    def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if threading.get_ident() != thread:
            return output  # another thread decodes with the same model
        (x,) = args  # [B, S, in]
        if output.shape[-2] == rows:
            # The only case under autograd, which forbids writing in place.
            return output.add(lora(x))
        # The linear map has just made `output` and nobody else has seen it.
        lora.add_to(output[:, -rows:], x[:, -rows:])
        return output

    return add
