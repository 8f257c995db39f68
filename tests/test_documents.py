"""What the documentation says of the tests is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
NAMED = sorted(
    {
        (page.name, file, test)
        for page in (PROJECT / "docs").glob("*.md")
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
