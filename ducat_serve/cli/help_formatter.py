"""How `--help` breaks its lines."""

from __future__ import annotations

from collections.abc import Iterable

import click

_UNBROKEN = "‑"  # U+2011: as wide as a hyphen, and no line ends there


class HelpFormatter(click.HelpFormatter):
    """click's own, which would break `--lr-milestones` at its hyphens: whoever searches for it would not find it."""

    def write_text(self, text: str) -> None:
        super().write_text(_unbroken(text))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        unbroken = [(_short(first), _unbroken(second)) for first, second in rows]
        super().write_dl(unbroken, col_max, col_spacing)

    def getvalue(self) -> str:
        return super().getvalue().replace(_UNBROKEN, "-")


def _short(names: str) -> str:
    """An option's names with N and X for whole and other numbers; which ones it takes stands behind its text."""
    return names.replace("INTEGER RANGE", "N").replace("FLOAT RANGE", "X").replace("INTEGER", "N")


def _unbroken(text: str) -> str:
    return text.replace("-", _UNBROKEN)
