"""An ASGI middleware in front of everything that asks the model: API keys first, before a byte of the body is read."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.keys import Keys
from service.limits import Allowance
from service.problems import Problem
from service.settings import Settings

GUARDED = ("/v1/", "/v2/models/")
EVERYONE = "everyone"


class Door:
    """Answers 401 without a known key, 429 where nothing is left; else puts the `Allowance` into the scope's state.

    Without keys all clients share one allowance.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.keys = Keys(settings.keys_file, settings.api_keys)
        self._settings = settings
        self._allowances: dict[str, Allowance] = {}  # as many as there are keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(GUARDED):
            request = Request(scope)
            try:
                allowance = self._allowance(self._who(request))
                if scope["method"] == "POST":
                    allowance.require(1)
            except Problem as problem:
                await problem.response()(scope, receive, send)
                return
            request.state.allowance = allowance
        await self.app(scope, receive, send)

    def _who(self, request: Request) -> str:
        if not self.keys.are_required:
            return EVERYONE
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        name = self.keys.name_of(key) if key else None
        if name is None:
            message = "Send a known API key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
            raise Problem(401, "unauthorized", message)
        return name

    def _allowance(self, name: str) -> Allowance:
        if name not in self._allowances:
            settings = self._settings
            self._allowances[name] = Allowance(settings.rate, settings.burst, settings.daily_budget)
        return self._allowances[name]


def charge(request: Request, images: int) -> None:
    """Charge the images of a request to its client, once they are known. Raises Problem (429)."""
    allowance: Allowance | None = getattr(request.state, "allowance", None)
    if allowance is not None:
        allowance.charge(images)
