"""Take BentoML's timeout out of the way of requests; ours (service/model.py) ends them first, decoding included.

It cannot be switched off by any setting, and keeps a timer and a future for its whole time after every request,
answered or not: tens of thousands of them under load, a tenth of the event loop's time.
"""

from __future__ import annotations

from bentoml._internal.server.http import traffic
from starlette.types import ASGIApp, Receive, Scope, Send


class NoTimer:
    """Stands where BentoML's timeout stood, and only passes on."""

    def __init__(self, app: ASGIApp, timeout: float) -> None:
        del timeout
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def take_out_timer() -> None:
    """To be called before BentoML makes the application. Without effect where BentoML has no such layer any more."""
    traffic.TimeoutMiddleware = NoTimer
