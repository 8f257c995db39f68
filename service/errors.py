"""What a client can be told: one shape for every error, `{"error": {"code", "message"}}`.

Below /v2 it is `{"error": "message", "code": "code"}`: in the Open Inference Protocol the error is a string, and
its clients print it.
"""

from __future__ import annotations

import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ExceptionHandler, Scope

from service.models.errors import (
    ModelError,
    ModelRefused,
    ModelRequired,
    NotReady,
    Stalled,
    Stopping,
    UnknownModel,
)


class APIError(Exception):
    """A request that cannot be answered.

    Args:
        status: HTTP status.
        code: a word for programs.
        message: a sentence for people, without paths or internals.
        retry_after: seconds after which the same request may succeed.
    """

    def __init__(self, status: int, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after

    def response(self, scope: Scope) -> JSONResponse:
        """The HTTP response that says so; the code goes into the request's state, for metrics and logs."""
        scope.setdefault("state", {})["reason"] = self.code
        headers = {"X-Content-Type-Options": "nosniff"}
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status == 408:
            headers["Connection"] = "close"  # what is left of the request would be read for nothing
        return JSONResponse(error_document(scope["path"], self.code, self.message), self.status, headers)


def error_document(path: str, code: str, message: str) -> dict[str, Any]:
    """The JSON of an error, in the shape that is promised at this path."""
    if path == "/v2" or path.startswith("/v2/"):
        return {"error": message, "code": code}
    return {"error": {"code": code, "message": message}}


def from_model_error(error: ModelError) -> APIError:
    """What a client is told of something that the models cannot do."""
    match error:
        case UnknownModel():
            return APIError(404, "unknown_model", str(error))
        case ModelRequired():
            return APIError(400, "model_required", str(error))
        case ModelRefused():
            return APIError(422, "model_refused", str(error))
        case NotReady():
            return APIError(503, "not_ready", str(error), retry_after=1)
        case Stalled():
            return APIError(503, "inference_stalled", str(error), retry_after=10)
        case Stopping():
            return APIError(503, "stopping", str(error), retry_after=1)
    raise TypeError(f"{type(error).__name__} has no HTTP status") from error


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, APIError)
    return error.response(request.scope)


async def _model_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ModelError)
    return from_model_error(error).response(request.scope)


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = request.scope["path"]
    code, message = {
        404: ("not_found", f"There is nothing at {where}."),
        405: ("method_not_allowed", f"{where} does not take {request.method}."),
    }.get(error.status_code, ("http_error", str(error.detail)))
    response = APIError(error.status_code, code, message).response(request.scope)
    response.headers.update(error.headers or {})
    return response


async def _client_disconnected(request: Request, _: Exception) -> Response:
    # Nobody reads this; it keeps an upload that was given up from being logged as a failure of the server.
    return APIError(
        400, "client_disconnected", "The connection was closed before the request ended."
    ).response(request.scope)


EXCEPTION_HANDLERS: dict[Any, ExceptionHandler] = {
    APIError: _api_error,
    ModelError: _model_error,
    HTTPException: _http_exception,
    ClientDisconnect: _client_disconnected,
}
