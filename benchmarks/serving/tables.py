"""Tables in Markdown, as docs/performance/serving.md has them."""

from __future__ import annotations


def table(head: tuple[str, ...], *rows: tuple[str, ...]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, tuple("---" for _ in head), *rows))
