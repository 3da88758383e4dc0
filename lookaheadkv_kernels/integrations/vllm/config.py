"""The plugin's options under an engine's ``additional_config["lookaheadkv"]``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

KEY = "lookaheadkv"
POLICIES = ("snapkv", "lookahead")


@dataclass(frozen=True)
class EvictionConfig:
    """Policy and budget of an engine.

    Args:
        budget: entries that a KV head keeps of a prompt, rounded up to the block grid.
        policy: ``"snapkv"`` scores with the prompt's last ``window`` rows; ``"lookahead"`` runs the
            rows of ``modules`` over the finished prompt's cache.
        window: SnapKV's observation rows, inside the budget.
        pool_kernel: window of the max-pool over the scores.
        modules: folder of lookahead modules; only with ``"lookahead"``.

    Raises:
        ValueError: a value that makes no sense.
    """

    budget: int
    policy: str = "snapkv"
    window: int = 32
    pool_kernel: int = 7
    modules: str | None = None

    def __post_init__(self) -> None:
        for name in ("budget", "window", "pool_kernel"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{KEY}: {name} must be a whole number >= 1, got {value!r}")
        if self.pool_kernel % 2 == 0:
            raise ValueError(f"{KEY}: pool_kernel must be odd, got {self.pool_kernel}")
        if self.policy not in POLICIES:
            raise ValueError(
                f"{KEY}: policy must be one of {', '.join(POLICIES)}, got {self.policy!r}"
            )
        if self.policy == "snapkv" and self.budget < self.window:
            raise ValueError(
                f"{KEY}: budget must hold the window of {self.window} entries, got {self.budget}"
            )
        if (self.policy == "lookahead") != (self.modules is not None):
            raise ValueError(
                f"{KEY}: policy {self.policy!r} with modules {self.modules!r}: give the modules' "
                "folder with policy 'lookahead', and only then"
            )

    @classmethod
    def of(cls, additional_config: Any) -> EvictionConfig | None:
        """Read an engine's ``additional_config``; None if it does not ask for eviction.

        Raises:
            ValueError: an option that is unknown, missing, or makes no sense.
        """
        if not isinstance(additional_config, Mapping) or KEY not in additional_config:
            return None
        options = additional_config[KEY]
        if not isinstance(options, Mapping):
            raise ValueError(f"{KEY}: options must be a mapping, got {options!r}")
        known = {entry.name for entry in fields(cls)}
        for name in options:
            if name not in known:
                raise ValueError(f"{KEY}: unknown option {name!r}; there are {', '.join(known)}")
        if "budget" not in options:
            raise ValueError(f"{KEY}: budget is missing")
        return cls(**options)
