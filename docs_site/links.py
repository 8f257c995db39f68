"""MkDocs hook: pages of the repository that lie outside of docs/ become part of the site, and links to them work.

README.md is the site's first page. Every link is resolved in the repository, as GitHub does it, and then led to where
the same file lies in the site. So one link serves readers of the repository and of the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

PROJECT = Path(__file__).parents[1]
# Where a file of the repository lies in the site. docs/ itself is the root of the site.
MOVED = {
    "README.md": "index.md",
    **{name: name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "CITATION.cff")},
    **{path.relative_to(PROJECT).as_posix(): f"results/{path.name}" for path in PROJECT.glob("results/*")},
}
# [text](target), ![text](target), src="target", href="target" and srcset="target"; not an address, not an anchor.
_LINK = re.compile(r"""(\]\(|\b(?:src|href|srcset)=")([^)"#:\s]+)""")


def site_path(path: str) -> str | None:
    """Where the file at ``path`` of the repository lies in the site; None where it is no part of it."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return MOVED.get(path)


def with_site_links(text: str, repository_path: str, page: str) -> str:
    """Lead the links of a page to the site.

    Args:
        text: Markdown, with links that are relative to ``repository_path``.
        repository_path: the file in the repository, such as results/digits.md.
        page: the same file in the site, such as results/digits.md.

    A link to a file that is no part of the site stays as it is, and MkDocs reports it as broken.
    """
    folder = posixpath.dirname(repository_path)

    def led(found: re.Match[str]) -> str:
        target = site_path(posixpath.normpath(posixpath.join(folder, found[2])))
        if target is None:
            return found[0]
        return found[1] + posixpath.relpath(target, posixpath.dirname(page) or ".")

    return _LINK.sub(led, text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside of docs/."""
    from mkdocs.structure.files import File  # tests of this module need no MkDocs

    for source, target in MOVED.items():
        files.append(File.generated(config, target, abs_src_path=str(PROJECT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Lead the links of every page to the site."""
    path = page.file.src_uri
    source = next((source for source, target in MOVED.items() if target == path), f"docs/{path}")
    return with_site_links(markdown, source, path)
