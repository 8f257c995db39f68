"""Tables on a terminal and in a pipe. Nothing is cut, and no word is broken over two lines."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

Row = Sequence[str]
_FRAME = 3  # characters that a column's border and its blanks take


def plain_lines(columns: Row, rows: Sequence[Row]) -> list[str]:
    """A line per row with aligned columns, as `grep`, `sort` and `awk` like them; however long that gets."""
    lines = [columns, *rows] if any(columns) else list(rows)
    widths = [max(cell_len(line[index]) for line in lines) for index in range(len(columns))] if lines else []
    return [
        "  ".join(
            cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]


def boxed(columns: Row, rows: Sequence[Row], width: int) -> Table | None:
    """A box of at most ``width`` characters; None where words would have to be broken to fit.

    What is too long is wrapped between its words, the widest columns first.
    """
    lines = [columns, *rows]
    natural = [max(cell_len(line[index]) for line in lines) for index in range(len(columns))]
    least = [
        max((cell_len(word) for line in lines for word in line[index].split()), default=0)
        for index in range(len(columns))
    ]
    room = width - _FRAME * len(columns) - 1
    if sum(least) > room:
        return None
    sizes = [*natural]
    while sum(sizes) > room:
        widest = max((i for i in range(len(sizes)) if sizes[i] > least[i]), key=sizes.__getitem__)
        sizes[widest] -= 1
    table = Table(show_header=any(columns))
    for name, size in zip(columns, sizes, strict=True):
        table.add_column(name, width=size)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
