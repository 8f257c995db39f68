"""MkDocs hook: every notebook of docs/notebooks/ is a page too, with what its cells printed.

The page has the notebook's name with .md and lies beside it, so its links work in both. A test runs the notebooks and
compares their outputs, so nothing is run here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

PROJECT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook."""
    from mkdocs.structure.files import File  # tests of this module need no MkDocs

    for notebook in sorted((PROJECT / "docs" / "notebooks").glob("*.ipynb")):
        page = f"notebooks/{notebook.stem}.md"
        files.append(File.generated(config, page, content=as_page(notebook)))
    return files


def as_page(notebook: Path) -> str:
    """A notebook as Markdown: its text, its code, and the text that its code printed. No other outputs are known."""
    cells = json.loads(notebook.read_text())["cells"]
    title, *rest = [part for cell in cells for part in _parts(cell)]
    download = f"[Download the notebook]({notebook.name})"
    return "\n\n".join([title, download, *rest]) + "\n"


def _parts(cell: dict[str, Any]) -> list[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    printed = "".join(line for output in cell["outputs"] for line in output["text"])
    return [_block("python", source), *([_block("text", printed)] if printed else [])]


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"
