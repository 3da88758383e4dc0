"""The documentation names what is there: links lead somewhere, files of architecture.md exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.build_tools import ROOT

PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "hub").glob("*.md")],
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# The columns of architecture.md's table of rooms, and the folder that each of them speaks of.
FOLDERS = ("python_ref", "csrc/cpu", "csrc/cuda", "lookaheadkv_kernels/triton")


def anchors(page: Path) -> set[str]:
    """Fragments that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ +(.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        if fragment and target.suffix == ".md":
            assert fragment in anchors(target), f"{link}: no such heading"


def test_rooms_of_every_backend() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.partition("## Four rooms")[2].partition("What the rooms")[0]
    rows = [line.split("|")[3:7] for line in section.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 12
    for cells in rows:
        for folder, cell in zip(FOLDERS, cells, strict=True):
            for name in re.findall(r"`([\w/]+\.\w+)`", cell):
                assert (ROOT / folder / name).exists(), f"{folder}/{name}"
