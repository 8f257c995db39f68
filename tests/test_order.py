"""Files that take long come first, whole, and otherwise in the order that they had."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from tests.support.order import put_long_files_first


class Test:
    """What is asked of a test."""

    __test__ = False  # pytest is not to collect it

    def __init__(self, path: str, *marks: str) -> None:
        self.path, self.marks = Path(path), marks

    def get_closest_marker(self, name: str) -> bool:
        return name in self.marks


def test_long_files_come_first_and_stay_whole() -> None:
    tests = [
        Test("tests/core/test_pairs.py", "unit"),
        Test("tests/cli/test_mix.py"),
        Test("tests/cli/test_demo.py", "unit"),
        Test("tests/cli/test_demo.py", "slow"),
        Test("tests/end_to_end/test_faults.py"),
        Test("tests/cli/test_mix.py", "unit"),
    ]
    put_long_files_first(cast("list[pytest.Item]", tests))
    assert [(test.path.stem, *test.marks) for test in tests] == [
        ("test_demo", "unit"),
        ("test_demo", "slow"),
        ("test_faults",),
        ("test_mix",),
        ("test_mix", "unit"),
        ("test_pairs", "unit"),
    ]
