"""setuptools' build backend, asking for torch only where none is there to build against.

An isolated build hides the installed packages, so a plain ``requires = ["torch"]`` would fetch a
second torch, several GB with its CUDA libraries. The stable ABI makes any torch >= 2.10 as good as
any other: the one of the installing environment is used, and only without one a torch is asked for.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  (the hooks that stay as they are)
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

TORCH_REQUIREMENT = "torch>=2.10"
STABLE_HEADER = "include/torch/csrc/stable/library.h"
ConfigSettings = dict[str, Any] | None


def torch_dir() -> Path | None:
    """Folder of a torch >= 2.10 to build against: importable, or in this interpreter's own
    site-packages, which an isolated build leaves out of ``sys.path``."""
    spec = importlib.util.find_spec("torch")
    folders = [Path(path) for path in (spec and spec.submodule_search_locations) or []]
    folders += [Path(sysconfig.get_path(key)) / "torch" for key in ("platlib", "purelib")]
    # parallel_for came to the stable ABI with 2.10.
    return next((f for f in folders if _declares(f / STABLE_HEADER, "2_10_0")), None)


def _declares(header: Path, version: str) -> bool:
    versions = header.parent / "version.h"
    return header.is_file() and versions.is_file() and version in versions.read_text()


def _torch_requirement() -> list[str]:
    return [] if torch_dir() else [TORCH_REQUIREMENT]


def get_requires_for_build_wheel(config_settings: ConfigSettings = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_torch_requirement()]


def get_requires_for_build_editable(config_settings: ConfigSettings = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_torch_requirement()]
