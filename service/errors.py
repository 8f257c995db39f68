"""What a client can be told: one shape for every error, `{"error": {"code", "message"}}`.

Below /v2 it is `{"error": "message", "code": "code"}`: in the Open Inference Protocol the error is a string, and
its clients print it.
"""

from __future__ import annotations

import math
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Scope


class Problem(Exception):
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
        """The HTTP response that says so; the reason goes into the request's state, for metrics and logs."""
        scope.setdefault("state", {})["reason"] = self.code
        headers = {"X-Content-Type-Options": "nosniff"}
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self._document(scope["path"]), self.status, headers)

    def _document(self, path: str) -> dict[str, Any]:
        if path == "/v2" or path.startswith("/v2/"):
            return {"error": self.message, "code": self.code}
        return {"error": {"code": self.code, "message": self.message}}
