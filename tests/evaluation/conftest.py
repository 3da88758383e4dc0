"""Fixtures that several tests of the evaluation share."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_model import save_tiny_model, save_tiny_modules


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, and its modules in ``modules``."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_model(folder)
    save_tiny_modules(folder / "modules")
    return folder
