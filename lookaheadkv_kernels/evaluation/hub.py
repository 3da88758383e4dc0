"""Benchmark data from a local folder, or from a dataset on the hub."""

from __future__ import annotations

from pathlib import Path

# Only data: a dataset's own loading script is neither fetched nor run.
DATA_FILES = ["*.jsonl", "*.json", "*.yaml", "*.html", "*.zip"]


def data_folder(place: Path) -> Path:
    """The folder ``place``; if it does not exist, the files of the hub's dataset of that name.

    Args:
        place: a folder, or a dataset's ``owner/name``.

    Raises:
        FileNotFoundError: neither is there.
    """
    if place.is_dir():
        return place
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name = place.as_posix()
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=DATA_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"no benchmark data {name!r}: neither a folder, nor a dataset on the hub ({error})"
        ) from error
