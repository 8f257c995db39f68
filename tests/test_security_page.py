"""docs/security.md promises a test for each defence: they exist, under the names that it gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
NAMED = sorted(
    set(re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", (PROJECT / "docs" / "security.md").read_text()))
)

# They come with the service's new defences, and this list goes then.
NOT_YET_HERE = {
    "tests/core/test_image_bounds.py",
    "tests/core/test_onnx_graph.py",
    "tests/core/test_spec.py",
    "tests/service/test_decoders.py",
    "tests/service/test_host_check.py",
    "tests/training/data/test_cache.py",
}


def test_every_defence_names_a_test() -> None:
    table = (
        (PROJECT / "docs" / "security.md")
        .read_text()
        .partition("## What is defended")[2]
        .partition("\n## ")[0]
    )
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    assert all("::test_" in row for row in rows)


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[f"{file}-{name}" for file, name in NAMED])
def test_a_named_test_exists(file: str, name: str) -> None:
    path = PROJECT / file
    if file in NOT_YET_HERE and not path.exists():
        pytest.skip(f"{file} is not here yet")
    assert re.search(rf"^\s*(async )?def {name}\(", path.read_text(), re.MULTILINE)
