"""LookaheadKV: the learned rows behind the prompt say what the answer will need."""

from __future__ import annotations

from typing import ClassVar

from ..lookahead import LookaheadModules
from .base import Kept, LayerCall, Policy


class LookaheadPolicy(Policy):
    """Mean attention of the lookahead rows, max-pooled, Top-K; nothing is pinned (paper alg. 2).

    Args:
        modules: trained lookahead modules of the model.
        mode: ``"appended"`` runs the lookahead rows with the prompt's last chunk and cuts each
            layer as soon as it is done; ``"extend"`` runs them over the finished prompt's cache.
            Both keep the same entries.
        pool_kernel: window of the max-pool.
    """

    name: ClassVar[str] = "lookahead"
    handles_padding: ClassVar[bool] = True
    modules: LookaheadModules

    def __init__(
        self, modules: LookaheadModules, *, mode: str = "appended", pool_kernel: int = 7
    ) -> None:
        if mode not in ("appended", "extend"):
            raise ValueError(f"mode must be 'appended' or 'extend', got {mode!r}")
        self.modules = modules
        self.mode = mode
        self.pool_kernel = pool_kernel

    def evict(self, call: LayerCall) -> Kept:
        """The last ``num_lookahead`` rows and entries are the lookahead tokens: they go."""
        return call.keep_best(self.modules.config.num_lookahead, pool_kernel=self.pool_kernel)
