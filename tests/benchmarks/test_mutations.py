"""The list of deliberate breaks: each still finds the code that it breaks, and names tests that are there."""

from __future__ import annotations

import pytest
from mutation import Mutation
from mutation_table import MUTATIONS
from mutations import PROJECT


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_a_break_finds_what_it_breaks(mutation: Mutation) -> None:
    assert (PROJECT / mutation.file).read_text().count(mutation.old) == 1
    for test in mutation.tests:
        file, name = test.split("::")
        assert f"def {name}(" in (PROJECT / file).read_text()
