"""MkDocs hook: the built site asks no other machine for anything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

# What a browser fetches by itself: not the links that a reader may follow.
_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video)\b[^>]*?\b(?:src|srcset)="(?:https?:)?//[^"]*"""
    r"""|<link\b(?![^>]*\brel="canonical")[^>]*?\bhref="(?:https?:)?//[^"]*"""
    r"""|@import\s+(?:url\()?["']?(?:https?:)?//[^"')]*|url\(["']?(?:https?:)?//[^"')]*"""
)


def outside_resources(text: str) -> list[str]:
    """Resources on other machines that a browser would fetch for this HTML or CSS."""
    return [found[0] for found in _FETCHED.finditer(text)]


def on_post_build(config: MkDocsConfig) -> None:
    """Fail where a page or a style sheet fetches something from elsewhere."""
    from mkdocs.exceptions import PluginError  # tests of this module need no MkDocs

    site = Path(config.site_dir)
    for path in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        if found := outside_resources(path.read_text(encoding="utf-8")):
            raise PluginError(f"{path.relative_to(site)} fetches {found[0]} from another machine")
