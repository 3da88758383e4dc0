"""Finds lookahead modules in this package, in a folder, or on the hub."""

from __future__ import annotations

from pathlib import Path

from ...lookahead.files import CONFIG_FILE, WEIGHTS_FILE

PACKAGED = Path(__file__).parents[2] / "weights"


def packaged_names() -> list[str]:
    """Names of the sets of modules that this package carries."""
    return sorted(path.parent.name for path in PACKAGED.glob("*/config.json"))


def find_modules(name: str | Path) -> Path:
    """The folder of a set of modules; a hub id is downloaded.

    Raises:
        FileNotFoundError: there are no modules of that name.
    """
    if str(name) in packaged_names():
        return PACKAGED / str(name)
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"no lookahead modules {str(name)!r}: neither packaged "
            f"({', '.join(packaged_names()) or 'none'}), nor a folder, nor on the hub ({error})"
        ) from error
