"""The HTTP routes, as a Starlette application around a model that is loaded while it starts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, Router

from ducat_serve.predictor import Predictions, Predictor
from ducat_serve.spec import ModelSpec
from service import open_inference
from service.answers import model_details, model_summary
from service.batcher import Batcher, DeadlineExceeded, Overloaded
from service.body_limit import BodyLimit
from service.problems import Problem
from service.settings import Settings
from service.uploads import read_images

log = logging.getLogger("ducat_serve.service")
log.setLevel(logging.INFO)
DECODING_THREADS = 2
PAGE = Path(__file__).parent / "page" / "index.html"


class Model:
    """The served model; None until it is loaded and warm."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = settings.model.stem
        self.predictor: Predictor | None = None
        self.batcher: Batcher | None = None
        self.requests = 0  # being read, decoded or predicted
        # A decoded 25-megapixel image takes hundreds of megabytes for a moment: two at a time, no more.
        self.decoding = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode")

    @property
    def is_ready(self) -> bool:
        """Whether predictions would be answered now."""
        return self.batcher is not None

    async def start(self) -> None:
        """Load and warm up off the event loop, so that /livez answers meanwhile."""
        settings = self.settings
        predictor = await asyncio.to_thread(Predictor, settings.model, settings.device, settings.threads)
        await asyncio.to_thread(predictor.warm_up, (1, settings.max_batch))
        if predictor.fallback_reason:
            log.warning("Serving on the CPU: %s", predictor.fallback_reason)
        log.info("Model %s is ready on %s", self.name, predictor.provider)
        self.predictor = predictor
        self.batcher = Batcher(predictor, max_batch=settings.max_batch, max_queue=settings.max_queue)

    async def stop(self) -> None:
        """Answer what is queued."""
        if self.batcher is not None:
            await self.batcher.close()
        self.decoding.shutdown(wait=False)

    def get(self) -> Predictor:
        """The predictor. Raises Problem (503) before it is ready."""
        if self.predictor is None:
            raise Problem(503, "not_ready", "The model is still loading.", retry_after=1)
        return self.predictor

    @contextlib.asynccontextmanager
    async def admitted(self) -> AsyncIterator[Predictor]:
        """Let a request in: refused at once where too many are, ended at the deadline, decoding included.

        Raises Problem: 503 before the model is ready, 429 at the limit, 504 at the deadline.
        """
        predictor = self.get()
        overloaded = Problem(429, "overloaded", "The server is at its limit; try again later.", retry_after=1)
        if self.requests >= self.settings.max_queue:
            raise overloaded
        self.requests += 1
        try:
            async with asyncio.timeout(self.settings.deadline):
                yield predictor
        except Overloaded as error:
            overloaded.retry_after = error.retry_after
            raise overloaded from error
        except (DeadlineExceeded, TimeoutError) as error:
            message = f"No prediction within {self.settings.deadline:g} s."
            raise Problem(504, "deadline_exceeded", message) from error
        finally:
            self.requests -= 1

    async def predict(self, images: NDArray[np.uint8]) -> Predictions:
        """Predict through the batcher, inside `admitted`."""
        assert self.batcher is not None
        return await self.batcher.predict(images, self.settings.deadline)


def create_app(model: Model) -> Starlette:
    """The application; it starts and stops ``model`` with its own life."""
    settings = model.settings

    async def predict(request: Request) -> Response:
        async with model.admitted() as predictor:
            images = await read_images(request, predictor.spec, settings, model.decoding)
            predictions = await model.predict(images)
        return JSONResponse(
            {
                "model": model_summary(model.name, predictor),
                "predictions": predictions.to_json(predictor.spec.labels, settings.top_k),
            }
        )

    async def describe(_: Request) -> Response:
        return JSONResponse(model_details(model.name, model.get()))

    async def page(_: Request) -> Response:
        return FileResponse(PAGE, media_type="text/html")

    async def v2_server(_: Request) -> Response:
        return JSONResponse(open_inference.server_metadata())

    async def v2_live(_: Request) -> Response:
        return JSONResponse({"live": True})

    async def v2_ready(_: Request) -> Response:
        model.get()
        return JSONResponse({"ready": True})

    def named(request: Request) -> Predictor:
        if request.path_params["name"] != model.name:
            raise Problem(404, "unknown_model", f"There is no model '{request.path_params['name']}' here.")
        return model.get()

    async def v2_model(request: Request) -> Response:
        return JSONResponse(open_inference.model_metadata(model.name, named(request).spec))

    async def v2_model_ready(request: Request) -> Response:
        named(request)
        return JSONResponse({"name": model.name, "ready": True})

    async def v2_infer(request: Request) -> Response:
        named(request)
        async with model.admitted() as predictor:
            body = await request.body()
            request_id, images = await asyncio.get_running_loop().run_in_executor(
                model.decoding, _read_v2, body, predictor.spec, settings.max_images
            )
            predictions = await model.predict(images)
        return JSONResponse(open_inference.write_response(model.name, request_id, predictions))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        starting = asyncio.create_task(model.start())
        starting.add_done_callback(_end_on_failure)
        yield
        starting.cancel()
        await model.stop()

    routes = [
        Route("/", page),
        Route("/v1/predict", predict, methods=["POST"]),
        Route("/v1/model", describe),
        Route("/v2", v2_server),
        Route("/v2/health/live", v2_live),
        Route("/v2/health/ready", v2_ready),
        Route("/v2/models/{name}", v2_model),
        Route("/v2/models/{name}/ready", v2_model_ready),
        Route("/v2/models/{name}/infer", v2_infer, methods=["POST"]),
    ]
    return Starlette(
        # In a Mount, which matches every path: BentoML answers with its own pages what no route here matches.
        routes=[Mount("/", app=Router(routes, redirect_slashes=False))],
        middleware=[Middleware(BodyLimit, max_body=settings.max_body)],
        exception_handlers={
            Problem: _problem,
            HTTPException: _http_exception,
            ClientDisconnect: _client_gone,
            Exception: _unexpected,
        },
        lifespan=lifespan,
    )


def _read_v2(body: bytes, spec: ModelSpec, max_images: int) -> tuple[str | None, NDArray[np.uint8]]:
    document = _json(body)
    images = open_inference.read_request(document, spec, max_images)
    return open_inference.read_id(document), images


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem(400, "invalid_json", "The body is not JSON.") from error


def _end_on_failure(starting: asyncio.Task[None]) -> None:
    """A server that will never be ready must say why and end, not sit there."""
    if starting.cancelled() or (error := starting.exception()) is None:
        return
    log.error("The model cannot be served: %s", error)
    os.kill(os.getpid(), signal.SIGTERM)


async def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = request.url.path
    code, message = {
        404: ("not_found", f"There is nothing at {where}."),
        405: ("method_not_allowed", f"{where} does not take {request.method}."),
    }.get(error.status_code, ("http_error", str(error.detail)))
    response = Problem(error.status_code, code, message).response()
    response.headers.update(error.headers or {})
    return response


async def _client_gone(_: Request, __: Exception) -> Response:
    # Nobody reads this; it keeps an upload that was given up from being logged as a failure of the server.
    return Problem(
        400, "client_disconnected", "The connection was closed before the request ended."
    ).response()


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return Problem(500, "internal_error", "The server failed to answer; the cause is in its log.").response()
