"""Three things that no setting of BentoML 1.4 does. Where they do not fit a version there is a warning."""

from __future__ import annotations

import functools
import inspect
import logging
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

log = logging.getLogger("ducat_serve.service")


def without_layers(app: ASGIApp) -> ASGIApp:
    """The application that BentoML made of our service, without the middlewares that BentoML puts around it.

    We need none of them, and three have no switch: the request context, tracing of URLs that are all excluded, and a
    timeout that keeps a timer for its whole time after every request. docs/performance/serving.md says what they cost.
    This changes nothing inside BentoML: the list is the application's own, and it has not been started.
    """
    if isinstance(app, Starlette) and app.middleware_stack is None:
        app.user_middleware.clear()
    else:
        log.warning(
            "This BentoML makes another kind of application: its own layers stay, and requests cost more."
        )
    return app


def without_pages(app: ASGIApp) -> ASGIApp:
    """The application that BentoML made of our service, with ours behind every path.

    BentoML adds pages of its own (/schema.json) and probes in front of ours, which know no key, no log and no error of
    ours, and no reason why the server is not ready. And it would answer by itself what is no path at all, such as the
    target of `OPTIONS *`.
    """
    routes = app.routes if isinstance(app, Starlette) else []
    ours = [route for route in routes if isinstance(route, Mount) and isinstance(route.app, Starlette)]
    if isinstance(app, Starlette) and len(ours) == 1:
        app.router.routes[:] = ours
        app.router.default = ours[0].app
    else:
        log.warning("This BentoML makes another kind of application: it answers some paths by itself.")
    return app


def without_control_ports() -> None:
    """For `bentoml serve`, before it makes its supervisor: let that one open no control ports.

    It would listen on two TCP ports of 127.0.0.1, and run any command for whoever reaches them. Signals do all that we
    need. `bentoml serve --reload`, for development, has another process that is told over these ports: there they stay.
    """
    try:
        from bentoml._internal.utils.circus import Arbiter
        from circus.arbiter import Arbiter as CircusArbiter

        known = set(inspect.signature(CircusArbiter.__init__).parameters)
        fits = issubclass(Arbiter, CircusArbiter) and known >= {"endpoint", "pubsub_endpoint", "plugins"}
    except ImportError:
        fits = False
    if not fits:
        log.warning(
            "This BentoML has another supervisor, which may listen on control ports of 127.0.0.1; "
            "python -m service.server.process has none."
        )
        return
    start = Arbiter.__init__

    @functools.wraps(start)
    def start_without_ports(supervisor: Arbiter, *arguments: Any, **options: Any) -> None:
        if not options.get("plugins"):
            options |= {"endpoint": "inproc://control", "pubsub_endpoint": "inproc://events"}
        start(supervisor, *arguments, **options)

    Arbiter.__init__ = start_without_ports
