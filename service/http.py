"""The HTTP routes, as a Starlette application around a model that is loaded while it starts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route, Router

from service.answers import model_details
from service.body_limit import BodyLimit
from service.door import Door, charge
from service.inputs import read_images
from service.model import Model, log
from service.page_headers import page_headers
from service.problems import Problem
from service.v2_routes import v2_routes
from service.watch import Watch

PAGE = Path(__file__).parent / "page" / "index.html"


def create_app(model: Model) -> Starlette:
    """The application; it starts and stops ``model`` with its own life."""
    settings = model.settings
    html = PAGE.read_text()
    headers = page_headers(html)

    async def predict(request: Request) -> Response:
        async with model.admitted() as served:
            spec = served.predictor.spec
            with model.metrics.stage("decode"):
                images = await read_images(request, spec, settings, model.decoding)
            charge(request, len(images))
            predictions = await model.predict(served, images, request)
        return JSONResponse(
            {
                "model": served.summary,
                "predictions": predictions.to_json(spec.labels, settings.top_k),
            }
        )

    async def describe(_: Request) -> Response:
        return JSONResponse(model_details(model.name, model.get().predictor))

    async def reload(_: Request) -> Response:
        served = await model.reload()
        return JSONResponse({"model": served.summary})

    async def metrics(_: Request) -> Response:
        return Response(model.metrics.text(), media_type="text/plain; version=0.0.4")

    async def page(_: Request) -> Response:
        return HTMLResponse(html, headers=headers)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        starting = asyncio.create_task(model.start())
        starting.add_done_callback(_end_on_failure)
        yield
        starting.cancel()
        await model.stop()

    routes = [
        Route("/", page),
        Route("/metrics", metrics),
        Route("/admin/reload", reload, methods=["POST"]),
        Route("/v1/predict", predict, methods=["POST"]),
        Route("/v1/model", describe),
        *v2_routes(model),
    ]
    return Starlette(
        # In a Mount, which matches every path: BentoML answers with its own pages what no route here matches.
        routes=[Mount("/", app=Router(routes, redirect_slashes=False))],
        middleware=[
            Middleware(Watch, metrics=model.metrics, log_all=settings.access_log),
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
