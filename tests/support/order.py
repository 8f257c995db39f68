"""The order in which several processes take test files: the long ones first, so that none is left for the end."""

from __future__ import annotations

from pathlib import Path

import pytest


def put_long_files_first(items: list[pytest.Item]) -> None:
    """Files with a `slow` test or of end_to_end/ come first, those of unit tests alone last; otherwise as they were.

    Together with `--dist loadfile --no-loadscope-reorder`, by which pytest-xdist hands out whole files in this order.
    """
    ranks: dict[Path, int] = {}
    for item in items:
        ranks[item.path] = min(_rank(item), ranks.get(item.path, 2))
    items.sort(key=lambda item: ranks[item.path])


def _rank(item: pytest.Item) -> int:
    if item.get_closest_marker("slow") or "end_to_end" in item.path.parts:
        return 0
    return 2 if item.get_closest_marker("unit") else 1
