"""The page as one HTML document.

Its style and its ES modules put in their places, so that its policy can name their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

FOLDER = Path(__file__).parent / "static"
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([a-z_]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=const |let |function |async function |class )", re.MULTILINE)


def read_page() -> str:
    """index.html with page.css and everything that main.js imports in it."""
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    html = html.replace("<style></style>", f"<style>\n{style}</style>")
    return html.replace(
        '<script type="module"></script>', f'<script type="module">\n{bundle("main.js")}</script>'
    )


def bundle(entry: str) -> str:
    """An ES module and all that it imports, each once and after what it needs, as one module.

    They share one scope, so no two files may declare the same name; a test looks.
    """
    texts: dict[str, str] = {}
    begun: set[str] = set()

    def add(name: str) -> None:
        if name in begun:
            return
        begun.add(name)
        text = (FOLDER / name).read_text(encoding="utf-8")
        for needed in _IMPORT.findall(text):
            add(needed)
        texts[name] = f"// {name}\n{_EXPORT.sub('', _IMPORT.sub('', text))}"

    add(entry)
    return "\n".join(texts.values())


def page_headers(html: str) -> dict[str, str]:
    """Headers by which a page may load nothing but what is in it, and nobody may frame it.

    The Content-Security-Policy names the hashes of the page's own script and style.
    """
    policy = {
        "default-src": "'none'",
        "script-src": _hashes(html, "script") or "'none'",
        "style-src": _hashes(html, "style"),
        "connect-src": "'self'",
        "img-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
    }


def _hashes(html: str, tag: str) -> str:
    found = re.findall(rf"<{tag}(?: [^>]*)?>(.*?)</{tag}>", html, flags=re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
