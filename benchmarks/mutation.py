"""What a deliberate break is."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """``old`` becomes ``new`` in ``file``, and one of ``tests`` fails."""

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
