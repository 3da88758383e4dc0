"""What people and GitHub look for beside the code: citation, security, issue templates."""

from __future__ import annotations

from typing import Any

import pytest
from support.build_tools import ROOT

from lookaheadkv_kernels import __version__, cli

yaml = pytest.importorskip("yaml")

TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    citation: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == __version__ and citation["license"] == "Apache-2.0"
    paper = citation["preferred-citation"]
    assert paper["url"] == "https://arxiv.org/abs/2603.10899"
    assert {"type", "title", "authors"} <= set(paper)
    assert all(set(author) == {"family-names", "given-names"} for author in paper["authors"])


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_issue_templates_are_forms(path: Any) -> None:
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        assert set(form) == {"blank_issues_enabled"}
        return
    assert form["name"] and form["description"] and form["body"]
    for field in form["body"]:
        assert field["type"] in ("textarea", "input", "dropdown", "markdown", "checkboxes")
        assert field["attributes"]["label"] and field["id"]
    assert len({field["id"] for field in form["body"]}) == len(form["body"])


def test_templates_ask_for_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert {path.stem for path in TEMPLATES} == {"bug", "slow", "wish", "config"}
    assert "lookaheadkv info" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text()
    assert cli.main(["info"]) == 0
    assert "backends" in capsys.readouterr().out
