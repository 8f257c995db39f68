"""What the documentation says of the repository is true, and so is what the repository says of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parent.parent
NAMED = sorted(
    {
        (page.name, file, test)
        for page in (PROJECT / "docs").rglob("*.md")
        for file, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)", page.read_text())
    }
)


@pytest.mark.parametrize(("page", "file", "test"), NAMED)
def test_every_test_that_a_page_names_exists(page: str, file: str, test: str) -> None:
    assert f"def {test}(" in (PROJECT / file).read_text(), f"docs/{page}"


def test_the_page_on_security_names_a_test_for_every_defence() -> None:
    text = (PROJECT / "docs/security.md").read_text()
    table = text.split("## What is defended")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 25
    assert [row for row in rows if "`tests/" not in row] == []


DOCUMENTS = [*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md"), *(PROJECT / "results").glob("*.md")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#:\s]+)[)#]", text) + re.findall(r'\b(?:src|srcset)="([^":]+)"', text)
    for target in targets:
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_pages_that_code_names_are_there() -> None:
    folders = ("ducat_serve", "training", "export", "service", "tests", "benchmarks", "docs_site", "deploy")
    sources = [
        path
        for folder in folders
        for path in (PROJECT / folder).rglob("*")
        if path.suffix in (".py", ".yaml")
    ]
    named = {
        (path.relative_to(PROJECT), page)
        for path in sources
        for page in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text(encoding="utf-8"))
    }
    assert len(named) >= 10
    assert [(str(path), page) for path, page in named if not (PROJECT / page).exists()] == []


def test_every_page_is_in_the_sites_navigation() -> None:
    text = (PROJECT / "mkdocs.yml").read_text()
    shown = set(re.findall(r": ([\w/-]+\.md)$", text, flags=re.MULTILINE))
    pages = {path.relative_to(PROJECT / "docs").as_posix() for path in (PROJECT / "docs").rglob("*.md")}
    assert pages - shown == {"deployment.md"}  # says where its parts are now
    assert yaml.safe_load(text)["nav"]
