"""Text of strangers in Markdown: names of classes and data sets come from whoever made the data or the file."""

from __future__ import annotations

import html
import re

from ducat_serve.output import visible

# With what a renderer of some kind obeys: CommonMark's own marks, and mathematics, tables and strikethrough of others.
_MARKS = re.compile(r"[\\`*_{}\[\]#|~$!]")
# Addresses and mentions that GitHub and others make links of by themselves.
_LINKS = re.compile(r":(?=//)|@|(?<=www)\.", re.IGNORECASE)


def text(value: object) -> str:
    """``value`` as one line of plain text, whatever it holds."""
    line = html.escape(visible(str(value)), quote=False)
    line = _MARKS.sub(r"\\\g<0>", line)
    return _LINKS.sub(lambda found: f"&#{ord(found.group())};", line)


def code(value: object) -> str:
    """``value`` as a code span of one line, in which nothing is obeyed."""
    shown = visible(str(value))
    if not shown:
        return "(empty)"
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    # Backticks at an end would join the fence, and a renderer takes one blank off each end.
    pad = " " if shown[0] in "` " or shown[-1] in "` " else ""
    return f"{fence}{pad}{shown}{pad}{fence}"
