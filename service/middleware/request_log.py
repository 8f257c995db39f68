"""The outermost ASGI middleware: request ids and metrics, and a JSON line for what went wrong."""

from __future__ import annotations

import logging
import random
import re
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.telemetry.logs import Fields
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracing

access_log = logging.getLogger("ducat_serve.access")
access_log.setLevel(logging.INFO)
PROBES = ("/livez", "/readyz", "/healthz")
_ROUTES = {
    **dict.fromkeys(PROBES, "probe"),
    "/v1/predict": "predict",
    "/v1/model": "model",
    "/": "page",
    "/metrics": "metrics",
    "/openapi.json": "openapi",
    "/docs": "docs",
    "/v1/examples": "examples",
    "/v1/attack": "attack",
}
# What a client may choose as its request id; anything else could forge lines of the log.
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestLog:
    """Puts `X-Request-Id` (the client's own if it is harmless) on every response and counts it.

    Responses of 400 and above are logged, all of them with ``log_all``. Probes are neither counted nor traced: a server
    is probed every second or so, and a few requests that fail would be lost among them, as would be what fails in a
    server among others that load.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None, log_all: bool) -> None:
        self.app, self.metrics, self.tracing, self.log_all = app, metrics, tracing, log_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {}).update(request_id=request_id.decode(), status=0)
        if self.tracing is None or is_probe(scope):
            await self._logged(scope, receive, send, request_id)
        else:
            with self.tracing.request(scope, route_of(scope["path"])):
                await self._logged(scope, receive, send, request_id)

    async def _logged(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        started, status = time.perf_counter(), 0

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        try:
            await self.app(scope, receive, marked)
        finally:
            route = route_of(scope["path"])
            seconds = time.perf_counter() - started
            scope["state"]["status"] = status
            if not is_probe(scope):
                self.metrics.request(route, status, seconds)
                if reason := scope["state"].get("reason"):
                    self.metrics.rejects.labels(reason).inc()
            if self.log_all or status >= 400 or status == 0:
                self._log(scope, request_id, status, seconds)

    def _log(self, scope: Scope, request_id: bytes, status: int, seconds: float) -> None:
        client = scope.get("client")
        state = scope.get("state", {})
        write_line(
            request_id=request_id.decode(),
            method=scope["method"],
            path=scope["path"][:200],
            status=status,
            seconds=round(seconds, 5),
            client=client[0] if client else None,
            key=state.get("key"),
            reason=state.get("reason"),
            trace_id=self.tracing.trace_id() if self.tracing else None,
        )


def write_line(**fields: str | float | None) -> None:
    """Write one line about a request; what is None is left out."""
    access_log.info(Fields(**fields))


def is_probe(scope: Scope) -> bool:
    """Whether a request asks how the server is."""
    return scope["path"] in PROBES and scope["method"] in ("GET", "HEAD")


def new_request_id() -> str:
    """A name for a line of the log; no secret."""
    return f"{random.getrandbits(64):016x}"


def route_of(path: str) -> str:
    """A name for metrics; never the path itself, of which a client could make any number."""
    if path.startswith("/v2"):
        return "infer" if path.endswith("/infer") else "v2"
    if path.startswith("/samples"):
        return "samples"
    return _ROUTES.get(path, "other")


def _request_id(scope: Scope) -> bytes:
    given: bytes = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given if _ID.fullmatch(given) else new_request_id().encode()
