"""Which other origins' pages may ask and read answers (CORS): exact ones, never "*"."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ducat_serve.errors import UsageError
from service.errors import APIError

# As browsers write an origin: no path, no closing slash, lower case, and no port where it is the scheme's own.
_ORIGIN = re.compile(r"https?://(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?")


def read_origins(text: str) -> list[str]:
    """The origins in a list with commas. Raises UsageError for one that no browser would send."""
    origins = [origin.strip() for origin in text.split(",") if origin.strip()]
    for origin in origins:
        scheme, _, rest = origin.partition("://")
        own_port = {"http": ":80", "https": ":443"}.get(scheme, "")
        if not _ORIGIN.fullmatch(origin) or rest.endswith(own_port):
            raise UsageError(
                f"'{origin}' is not an origin as browsers send it: scheme, name and perhaps a port.",
                "ducat serve MODEL --cors-origin https://app.example",
            )
    if not origins:
        raise UsageError("No origin is named.", "ducat serve MODEL --cors-origin https://app.example")
    return origins


class CrossOrigin(CORSMiddleware):
    """Starlette's, with refusals in the form of all errors, so that they are counted and logged with a reason."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser that asks whether a page may ask."""
        response = super().preflight_response(request_headers)
        return response if response.status_code < 400 else _Refusal(response)


class _Refusal(Response):
    def __init__(self, plain: Response) -> None:
        super().__init__()
        self._plain = plain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        what = bytes(self._plain.body).decode().removeprefix("Disallowed CORS ")
        message = f"A page may not ask this, for its {what}. `ducat serve --cors-origin` names who may GET and POST."
        response = APIError(400, "cross_origin_refused", message).response(scope)
        for name, value in self._plain.headers.items():
            if name == "vary" or name.startswith("access-control-"):
                response.headers[name] = value
        await response(scope, receive, send)
