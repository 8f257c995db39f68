"""The page at `/` and the sample images that it offers. Open to everyone: neither asks the model anything."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from service.errors import APIError
from service.page.document import FOLDER, page_headers, read_page
from service.page.samples import read_samples


def page_routes(samples_folder: Path | None) -> list[Route]:
    """The routes `/`, `/favicon.ico`, `/samples` and `/samples/NAME`.

    Raises DataError where the samples cannot be shown.
    """
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

    icon = (FOLDER / "icon.svg").read_bytes()

    async def favicon(_: Request) -> Response:
        return Response(icon, media_type="image/svg+xml", headers={"Cache-Control": "max-age=86400"})

    return [
        Route("/", page),
        Route("/favicon.ico", favicon),
        Route("/samples", names),
        Route("/samples/{name}", sample),
    ]
