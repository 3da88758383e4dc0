"""Rotary embeddings whose angles depend on how long the text is.

``dynamic`` and ``longrope`` choose their frequencies by the greatest position of a pass. A pass of
ours may hold more than the prompt (learned rows behind it) or less (one chunk of it). Within
:meth:`LengthRopes.reading` such modules are therefore told the prompt's own length: its rows get
the angles that the plain model would give them, the learned rows get the same frequencies, and the
module's state afterwards is that of a plain pass over the prompt.
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .compiled import uncompiled
from .patching import replaced

NAME = re.compile("rotary|rope", re.IGNORECASE)
# A rope type under which transformers' modules keep the frequencies that they have.
FIXED = "default"
NUM_NEAR = 8


class RopeState(NamedTuple):
    """What a module was: its attributes, and its buffers with their values at the time."""

    own: dict[str, Any]
    buffers: dict[str, tuple[Tensor | None, Tensor | None]]


class LengthRope:
    """One module whose angles depend on the greatest position that it is given.

    Args:
        module: the module.
        fixable: it can be kept from choosing frequencies, which a copy then does.
    """

    def __init__(self, module: nn.Module, *, fixable: bool) -> None:
        self.module = module
        self.fixable = fixable

    def state(self) -> RopeState:
        """What the module is now, to be given back to :meth:`restore`."""
        buffers = self.module._buffers.items()
        return RopeState(
            _own(self.module), {k: (v, None if v is None else v.clone()) for k, v in buffers}
        )

    def restore(self, state: RopeState) -> None:
        """Become again what the module was."""
        for name in _own(self.module).keys() - state.own.keys():
            del self.module.__dict__[name]
        self.module.__dict__.update(state.own)
        for name, (tensor, value) in state.buffers.items():
            # The same tensor where nothing wrote to it: graphs may replay from its address. Else a
            # copy, which the module may write to while this state is still wanted.
            if tensor is None or value is None or tensor.equal(value):
                self.module._buffers[name] = tensor
            else:
                self.module._buffers[name] = value.clone()

    def told(self, end: int, *, behind: bool) -> Callable[..., Any]:
        """A ``forward`` that computes angles as for a text of ``end`` tokens.

        Args:
            end: tokens of the text, earlier turns included.
            behind: all positions lie behind the text.
        """
        plain: Callable[..., Any] = self.module.forward
        thread = threading.get_ident()

        def forward(x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return plain(x, position_ids, *args, **kwargs)
            last = torch.full_like(position_ids[..., :1], end - 1)
            if self.fixable:
                plain(x, last, *args, **kwargs)
                return _fixed(self.module).forward(x, position_ids, *args, **kwargs)
            if behind:
                state = self.state()
                try:
                    return plain(x, position_ids, *args, **kwargs)
                finally:
                    self.restore(state)
            angles = plain(x, torch.cat([position_ids, last], dim=-1), *args, **kwargs)
            return _first(angles, position_ids.shape[-1])

        return forward


class LengthRopes:
    """All modules of a decoder whose angles depend on the length of the text.

    Args:
        decoder: the model's decoder.

    Attributes:
        ropes: these modules.
        fixable: learned rows may run in one pass with the prompt.
    """

    def __init__(self, decoder: nn.Module) -> None:
        found = (m for m in decoder.modules() if NAME.search(type(m).__name__))
        self.ropes = [rope for module in found if (rope := _examined(module)) is not None]
        self.fixable = all(rope.fixable for rope in self.ropes)
        self._open = threading.local()

    def state(self) -> list[RopeState]:
        """What all modules are now."""
        return [rope.state() for rope in self.ropes]

    def restore(self, state: Sequence[RopeState]) -> None:
        """Make all modules what they were."""
        for rope, own in zip(self.ropes, state, strict=True):
            rope.restore(own)

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """A block after which the modules are what they were if it failed."""
        state = self.state()
        try:
            yield
        except BaseException:
            self.restore(state)
            raise

    @contextmanager
    def reading(self, positions: Tensor, *, behind: bool = False) -> Iterator[None]:
        """A block in which the text ends at the greatest of ``positions``.

        Of blocks within each other the outermost one counts.

        Args:
            positions: int64 [B, N] of the text.
            behind: only rows behind the text are run.
        """
        if not self.ropes or getattr(self._open, "now", False):
            yield
            return
        end = int(positions.max()) + 1
        with uncompiled(), self.restored_on_error(), ExitStack() as stack:
            for rope in self.ropes:
                forward = rope.told(end, behind=behind)
                stack.enter_context(replaced(rope.module, forward=forward))
            self._open.now = True
            try:
                yield
            finally:
                self._open.now = False


def _own(module: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in module.__dict__.items() if not k.startswith("_") and k != "forward"}


def _examined(module: nn.Module) -> LengthRope | None:
    """The module as one that depends on length; None if it does not."""
    kinds = getattr(module, "rope_type", None)
    types = list(kinds.values()) if isinstance(kinds, dict) else [kinds]
    by_type = any(isinstance(t, str) and ("dynamic" in t or t == "longrope") for t in types)
    try:
        if by_type or _depends(_twin(module)):
            return LengthRope(module, fixable=not _depends(_fixed(module)))
    except Exception:  # buffers elsewhere, or another signature: then its type decides
        return LengthRope(module, fixable=True) if by_type else None
    return None


def _depends(module: nn.Module) -> bool:
    """Whether a far position changes the angles of near ones."""
    config = getattr(module, "config", None)
    longest = getattr(config, "max_position_embeddings", None) or 1 << 15
    longest = max(longest, int(getattr(module, "max_seq_len_cached", None) or 0))
    buffer = next(iter(module.buffers()), None)
    device = torch.device("cpu") if buffer is None else buffer.device
    kinds = getattr(module, "rope_type", None)
    layer_types = list(kinds) if isinstance(kinds, dict) else [None]
    near = torch.arange(NUM_NEAR, device=device)[None]
    far = torch.cat([near, torch.full_like(near[:, :1], 2 * longest)], dim=1)
    x = torch.zeros(1, NUM_NEAR, 1, device=device)
    for layer_type in layer_types:
        options = {} if layer_type is None else {"layer_type": layer_type}
        with torch.no_grad():
            alone = module.forward(x, near, **options)
            beside = _first(module.forward(x, far, **options), NUM_NEAR)
        pairs = zip(_tensors(alone), _tensors(beside), strict=True)
        if not all(torch.equal(one, other) for one, other in pairs):
            return True
    return False


def _twin(module: nn.Module) -> nn.Module:
    """A copy with a state of its own and the class's forward."""
    twin = copy.copy(module)
    twin.__dict__.pop("forward", None)
    twin._buffers = {k: None if b is None else b.clone() for k, b in module._buffers.items()}
    twin._modules = {k: None if m is None else _twin(m) for k, m in module._modules.items()}
    return twin


def _fixed(module: nn.Module) -> nn.Module:
    """A copy that keeps the frequencies which the module has now."""
    twin = _twin(module)
    kinds = getattr(module, "rope_type", None)
    twin.__dict__["rope_type"] = dict.fromkeys(kinds, FIXED) if isinstance(kinds, dict) else FIXED
    return twin


def _tensors(angles: Any) -> list[Tensor]:
    return [angles] if isinstance(angles, Tensor) else [a for a in angles if isinstance(a, Tensor)]


def _first(angles: Any, count: int) -> Any:
    """The angles [..., n, D] of the first ``count`` positions."""
    if isinstance(angles, Tensor):
        return angles.narrow(-2, 0, count)
    return type(angles)(_first(part, count) for part in angles)
