"""The page at `/` and the sample images that it offers. Open to everyone: neither asks the model anything."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from service.errors import APIError
from service.page.samples import read_samples

FOLDER = Path(__file__).parent / "static"
# Where each file goes in index.html. One document, so that its policy names the hashes of all that it may run.
_PARTS = {
    "<style></style>": ("<style>\n{}</style>", ("page.css",)),
    "<script></script>": ("<script>\n{}</script>", ("picture.js", "page.js")),
}


def read_page() -> str:
    """The page as one HTML document, with its style and its scripts in their places."""
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    for place, (tag, files) in _PARTS.items():
        text = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in files)
        html = html.replace(place, tag.format(text))
    return html


def page_routes(samples_folder: Path | None) -> list[Route]:
    """The routes `/`, `/samples` and `/samples/NAME`. Raises DataError where the samples cannot be shown."""
    html = read_page()
    headers = page_headers(html)
    samples = read_samples(samples_folder).images

    async def page(_: Request) -> Response:
        return HTMLResponse(html, headers=headers)

    async def names(_: Request) -> Response:
        return JSONResponse(list(samples))

    async def sample(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in samples:
            raise APIError(404, "unknown_sample", "There is no sample of this name; GET /samples lists them.")
        found = samples[name]
        return Response(found.data, media_type=found.kind, headers={"X-Content-Type-Options": "nosniff"})

    return [Route("/", page), Route("/samples", names), Route("/samples/{name}", sample)]


def page_headers(html: str) -> dict[str, str]:
    """Headers by which the page may load nothing but what is in it, and nobody may frame it.

    The Content-Security-Policy names the hashes of the page's own script and style.
    """
    policy = {
        "default-src": "'none'",
        "script-src": _hashes(html, "script"),
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
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
