"""The notebook runs from its first cell to its last, and prints what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.support.notebooks import code_cells, printed_by_cells

NOTEBOOK = PROJECT / "docs" / "notebooks" / "digits.ipynb"
_NUMBER = re.compile(r"\d[\d.e+-]*")


def words(text: str) -> str:
    """Text without its numbers, which another machine's arithmetic may change."""
    return _NUMBER.sub("0", text)


@pytest.mark.slow
@pytest.mark.extended
def test_the_notebook_prints_what_it_shows(tmp_path: Path) -> None:
    shown = ["".join("".join(output["text"]) for output in cell["outputs"]) for cell in code_cells(NOTEBOOK)]
    printed = printed_by_cells(NOTEBOOK, tmp_path)
    assert [words(text) for text in printed] == [words(text) for text in shown]
    assert sum(bool(text) for text in shown) >= 5
