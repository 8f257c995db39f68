"""An ASGI middleware that refuses bodies over a limit, each and together, whether or not they announce their size.

And compressed ones: a few bytes of them may unfold to any number, and no client of ours sends any.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import APIError

_MAX_DIGITS = 18  # Python refuses to read numbers of thousands of digits


class _Refused(Exception):
    def __init__(self, error: APIError) -> None:
        super().__init__(error.code)
        self.error = error


class BodyLimit:
    """Counts bytes as they arrive: 413 for a body of more than ``max_body``, 429 where all together are too many.

    415 for a body with a Content-Encoding.

    ``max_bodies`` bounds what all requests hold in memory at a time; nothing is ever written to a temporary file.
    """

    def __init__(self, app: ASGIApp, max_body: int, max_bodies: int) -> None:
        self.app = app
        self.max_body, self.max_bodies = max_body, max_bodies
        self.held = 0  # bytes of all bodies whose requests are not answered yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        too_large = APIError(
            413, "body_too_large", f"The request body is over the limit of {self.max_body} bytes."
        )
        headers = dict(scope["headers"])
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding != b"identity":
            message = "Send the body as it is, not compressed: no Content-Encoding but identity is taken."
            await APIError(415, "unsupported_encoding", message).response(scope)(scope, receive, send)
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > _MAX_DIGITS or int(length) > self.max_body:
            await too_large.response(scope)(scope, receive, send)
            return
        received = 0
        started = False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            size = len(message.get("body", b""))
            received += size
            self.held += size
            if received > self.max_body:
                raise _Refused(too_large)
            if self.held > self.max_bodies:
                text = "Too many large bodies at a time; try again later."
                raise _Refused(APIError(429, "overloaded", text, retry_after=1))
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except _Refused as refused:
            if not started:
                await refused.error.response(scope)(scope, receive, send)
        finally:
            self.held -= received
