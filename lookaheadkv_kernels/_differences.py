"""What differs between an earlier run and the one that would go on with it, in words."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], *, free: Collection[str] = ()
) -> list[str]:
    """A clause for every entry that differs: its name, the old value, the new one.

    Args:
        old: of the earlier run.
        new: of this one.
        free: entries that may differ, because the result does not depend on them.
    """
    old, new = (json.loads(json.dumps(values)) for values in (old, new))  # as they are read back
    names = [name for name in dict.fromkeys([*old, *new]) if name not in free]
    return [
        f"{name} was {_shown(old, name)} and is {_shown(new, name)} now"
        for name in names
        if old.get(name) != new.get(name)
    ]


def _shown(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if values.get(name) is not None else "not given"
