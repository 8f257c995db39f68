"""An ASGI middleware in front of everything that asks the model: API keys first, before a byte of the body is read."""

from __future__ import annotations

import hmac

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import APIError
from service.middleware.api_keys import Keys
from service.middleware.rate_limit import Quota
from service.settings import Settings

METRICS = "/metrics"
_BELOW_FOR_ADMINS = ("/admin/", "/v2/repository/")
_BELOW_FOR_KEYS = ("/v1/", "/v2/models/")
EVERYONE = "everyone"


class Auth:
    """Answers 401 without a known key, 429 where nothing is left; else puts the `Quota` into the scope's state.

    Without keys all clients share one quota.
    """

    def __init__(self, app: ASGIApp, settings: Settings, keys: Keys) -> None:
        self.app, self.keys = app, keys
        self._settings = settings
        self._quotas: dict[str, Quota] = {}  # as many as there are keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (
            is_for_admins(scope["path"]) or scope["path"].startswith(_BELOW_FOR_KEYS)
        ):
            request = Request(scope)
            try:
                if is_for_admins(scope["path"]):
                    self._require_admin(request)
                    await self.app(scope, receive, send)
                    return
                name = self._who(request)
                if self.keys.are_required:
                    request.state.key = name
                quota = self._quota(name)
                if scope["method"] == "POST":
                    quota.require(1)
            except APIError as error:
                await error.response(scope)(scope, receive, send)
                return
            request.state.quota = quota
        await self.app(scope, receive, send)

    def _who(self, request: Request) -> str:
        if not self.keys.are_required:
            return EVERYONE
        key = _key(request)
        name = self.keys.name_of(key) if key else None
        if name is None:
            message = "Send a known API key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
            raise APIError(401, "unauthorized", message)
        return name

    def _require_admin(self, request: Request) -> None:
        """Without an admin key the metrics are open, as Prometheus expects them, and nothing else is there."""
        wanted = self._settings.admin_key
        if wanted is None and request.scope["path"] != METRICS:
            raise APIError(404, "not_found", "There is nothing here; the server has no admin key.")
        if wanted is not None and not hmac.compare_digest(_key(request).encode(), wanted.encode()):
            raise APIError(401, "unauthorized", "Send the admin key as 'Authorization: Bearer KEY'.")

    def _quota(self, name: str) -> Quota:
        if name not in self._quotas:
            settings = self._settings
            self._quotas[name] = Quota(settings.rate, settings.burst, settings.daily_budget)
        return self._quotas[name]


def is_for_admins(path: str) -> bool:
    """Whether what is at this path wants the admin key, where there is one."""
    return path == METRICS or path.startswith(_BELOW_FOR_ADMINS)


def _key(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")


def charge_request(request: Request, images: int) -> None:
    """Charge the images of a request to its client, once they are known.

    Raises APIError: 429 where the client has fewer left, 413 where it never has as many.
    """
    if (quota := _quota_of(request)) is not None:
        quota.require_enough_in_a_day(images)
        quota.charge(images)


def refund(request: Request, images: int) -> None:
    """Take the charge for images of a request back, which the server has failed to answer."""
    if (quota := _quota_of(request)) is not None:
        quota.refund(images)


def charge(request: Request, images: int) -> None:
    """Charge images that are asked about on behalf of a request, beside its own. Raises APIError (429)."""
    if (quota := _quota_of(request)) is not None:
        quota.charge(images)


def _quota_of(request: Request) -> Quota | None:
    quota: Quota | None = getattr(request.state, "quota", None)
    return quota
