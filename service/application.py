"""The HTTP routes, as a Starlette application around a model that is loaded while it starts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router

from service.api.images import read_images
from service.api.responses import model_details
from service.api.v2 import v2_routes
from service.errors import Problem
from service.middleware.auth import Door
from service.middleware.body_limit import BodyLimit
from service.middleware.request_log import Watch
from service.models.registry import Models, log
from service.openapi.document import document
from service.page.routes import page_routes
from service.reloading import reloading_on_sighup

PROBES = ("/livez", "/readyz", "/healthz")


def create_app(models: Models) -> Starlette:
    """The application; it starts and stops ``models`` with its own life."""
    settings = models.settings
    described = document(settings)

    async def predict(request: Request) -> Response:
        async with models.admitted(request, *_which(request)) as admission:
            served = admission.served
            spec = served.predictor.spec
            with models.stage("decode"):
                images = await read_images(request, spec, settings, models.decoding, admission.take)
            predictions = await models.predict(served, images, request)
        return JSONResponse(
            {
                "model": served.summary,
                "predictions": predictions.to_json(spec.labels, settings.top_k),
            }
        )

    async def describe(request: Request) -> Response:
        served = models.get(*_which(request))
        return JSONResponse(model_details(served.name, served.version, served.predictor))

    async def index(_: Request) -> Response:
        models.require_loaded()
        return JSONResponse({"models": [served.summary for served in models.all()]})

    async def reload(_: Request) -> Response:
        return JSONResponse({"models": [served.summary for served in await models.reload()]})

    async def metrics(_: Request) -> Response:
        return Response(models.metrics.text(), media_type="text/plain; version=0.0.4")

    async def openapi(_: Request) -> Response:
        return JSONResponse(described)

    async def probe(_: Request) -> Response:
        # BentoML answers GET before it comes here, and would leave other methods with a 404.
        raise HTTPException(405, headers={"Allow": "GET, HEAD"})

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        starting = asyncio.create_task(models.start())
        starting.add_done_callback(_end_on_failure)
        with reloading_on_sighup(models):
            yield
        starting.cancel()
        await models.stop()

    routes = [
        *page_routes(settings.samples),
        Route("/openapi.json", openapi),
        Route("/metrics", metrics),
        Route("/admin/reload", reload, methods=["POST"]),
        Route("/v1/predict", predict, methods=["POST"]),
        Route("/v1/model", describe),
        Route("/v1/models", index),
        *v2_routes(models),
        *(Route(path, probe, methods=()) for path in PROBES),
    ]
    return Starlette(
        # In a Mount, which matches every path: BentoML answers with its own pages what no route here matches.
        routes=[Mount("/", app=Router(routes, redirect_slashes=False))],
        middleware=[
            Middleware(Watch, metrics=models.metrics, tracing=models.tracing, log_all=settings.access_log),
            Middleware(Door, settings=settings),
            Middleware(BodyLimit, max_body=settings.max_body, max_bodies=settings.max_bodies),
        ],
        exception_handlers={
            Problem: _problem,
            HTTPException: _http_exception,
            ClientDisconnect: _client_gone,
        },
        lifespan=lifespan,
    )


def _which(request: Request) -> tuple[str | None, str | None]:
    """The model and the version that a request names, if any."""
    return request.query_params.get("model"), request.query_params.get("version")


def _end_on_failure(starting: asyncio.Task[None]) -> None:
    """A server that will never be ready must say why and end, not sit there."""
    if starting.cancelled() or (error := starting.exception()) is None:
        return
    log.error("The model cannot be served: %s", error)
    os.kill(os.getpid(), signal.SIGTERM)


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response(request.scope)


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = request.url.path
    code, message = {
        404: ("not_found", f"There is nothing at {where}."),
        405: ("method_not_allowed", f"{where} does not take {request.method}."),
    }.get(error.status_code, ("http_error", str(error.detail)))
    response = Problem(error.status_code, code, message).response(request.scope)
    response.headers.update(error.headers or {})
    return response


async def _client_gone(request: Request, _: Exception) -> Response:
    # Nobody reads this; it keeps an upload that was given up from being logged as a failure of the server.
    return Problem(
        400, "client_disconnected", "The connection was closed before the request ended."
    ).response(request.scope)
