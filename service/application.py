"""The HTTP service as a Starlette application: its routes, its middleware, and a life with the models' own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route, Router

from service.api.admission import AdmissionControl
from service.api.attack_demo import attack_routes
from service.api.open_inference import JSON_LENGTH
from service.api.v1 import v1_routes
from service.api.v2 import v2_routes
from service.errors import EXCEPTION_HANDLERS
from service.middleware.api_keys import Keys
from service.middleware.auth import Auth
from service.middleware.body_limit import BodyLimit
from service.middleware.cors_origins import CrossOrigin, read_origins
from service.middleware.host_check import HostCheck, names_to_check
from service.middleware.last_resort import LastResort
from service.middleware.request_log import RequestLog
from service.models.errors import ModelError
from service.models.registry import Models, log
from service.openapi.document import document
from service.openapi.reference import reference_page
from service.page.document import page_headers
from service.page.routes import page_routes
from service.settings import Settings


def create_app(models: Models) -> Starlette:
    """The application; it starts and stops ``models`` with its own life. `app.state.admission` counts its requests.

    Raises DataError or UsageError where keys, samples, allowed hosts, origins or the audit log are not sound.
    """
    settings = models.settings
    # Now: Starlette makes its middleware when the first request comes, which is too late to refuse to start.
    keys = Keys(settings.keys_file, settings.api_keys, settings.admin_key)
    control = AdmissionControl(models)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        starting = asyncio.create_task(models.start())
        starting.add_done_callback(_end_on_failure)
        with _reloading_on_sighup(models):
            yield
        starting.cancel()
        await models.stop()
        await control.stop()

    routes = [
        *page_routes(settings.samples),
        *v1_routes(control),
        *attack_routes(control),
        *v2_routes(control),
        *_operation_routes(control),
    ]
    app = Starlette(
        # In a Mount, which matches every path: BentoML answers with its own pages what no route here matches.
        routes=[Mount("/", app=Router(routes, redirect_slashes=False))],
        middleware=[
            Middleware(
                RequestLog, metrics=models.metrics, tracing=models.tracing, log_all=settings.access_log
            ),
            *_cross_origin(settings),
            Middleware(LastResort),
            *_host_check(settings),
            Middleware(Auth, settings=settings, keys=keys),
            Middleware(BodyLimit, max_body=settings.max_body, max_bodies=settings.max_bodies),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=lifespan,
    )
    app.state.admission = control
    return app


def _host_check(settings: Settings) -> list[Middleware]:
    names = names_to_check(settings)
    return [] if names is None else [Middleware(HostCheck, names=names)]


def _cross_origin(settings: Settings) -> list[Middleware]:
    """Lets pages of these origins ask, and read every answer.

    In front of the keys: a browser asks without one whether it may.
    """
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CrossOrigin,
            allow_origins=read_origins(settings.cors_origins),
            allow_methods=("GET", "POST"),
            allow_headers=(
                *("Authorization", "Content-Type", "X-API-Key", "X-Request-Id", JSON_LENGTH),
                *("traceparent", "tracestate"),  # of a page that is traced
            ),
            expose_headers=("Retry-After", "X-Request-Id", JSON_LENGTH),
        )
    ]


def _operation_routes(control: AdmissionControl) -> list[Route]:
    models = control.models
    described = document(models.settings)
    reference = reference_page(described)
    reference_headers = page_headers(reference)

    async def docs(_: Request) -> Response:
        return HTMLResponse(reference, headers=reference_headers)

    async def openapi(_: Request) -> Response:
        return JSONResponse(described)

    async def metrics(_: Request) -> Response:
        return Response(models.metrics.text(), media_type="text/plain; version=0.0.4")

    async def live(_: Request) -> Response:
        models.require_live()
        return Response(media_type="text/plain")

    async def ready(_: Request) -> Response:
        control.require_ready()
        return Response(media_type="text/plain")

    return [
        Route("/openapi.json", openapi),
        Route("/docs", docs),
        Route("/metrics", metrics),
        Route("/livez", live),
        Route("/healthz", live),
        Route("/readyz", ready),
    ]


def _end_on_failure(starting: asyncio.Task[None]) -> None:
    """A server that will never be ready must say why and end, not sit there."""
    if starting.cancelled() or (error := starting.exception()) is None:
        return
    log.error("The model cannot be served: %s", error)
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _reloading_on_sighup(models: Models) -> Iterator[None]:
    """SIGHUP reads the models again, as `POST /admin/reload` does.

    Outside the main thread, where no signal arrives (in tests), it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    reloading = asyncio.create_task(reload_when(asked, models))
    loop.add_signal_handler(signal.SIGHUP, asked.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # by itself it would end the process in its last moments
        reloading.cancel()


async def reload_when(asked: asyncio.Event, models: Models) -> None:
    """Read the models again whenever ``asked`` is set, for ever.

    However often it is set while one reload runs, one more follows, which reads what was there at the last time.
    """
    while True:
        await asked.wait()
        asked.clear()
        try:
            await models.reload()
            log.info("SIGHUP: every model was read again")
        except ModelError as error:
            log.error("SIGHUP: %s", error)
