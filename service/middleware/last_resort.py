"""An ASGI middleware that answers 500 for what nobody foresaw, and logs its cause."""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import APIError

log = logging.getLogger("ducat_serve.service")


class LastResort:
    """Answers for the application where that raised. Inside of CORS, so that pages that may ask can read this, too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            log.error("%s %s failed", scope["method"], scope["path"][:200], exc_info=error)
            if has_begun:
                raise  # cutting the connection is all that is left
            failure = APIError(500, "internal_error", "The server failed to answer; the cause is in its log.")
            await failure.response(scope)(scope, receive, send)
