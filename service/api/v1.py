"""Routes of our own API: predictions and descriptions below /v1; /admin/reload answers as /v1/models does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ducat_serve.predictor import Predictions
from service.api.admission import AdmissionControl
from service.api.images import read_images
from service.api.query import require_no_query, which_model
from service.api.responses import model_details, model_summary
from service.errors import APIError
from service.models.served import LoadedVersion
from service.settings import MAX_TOP_K


def v1_routes(control: AdmissionControl) -> list[Route]:
    """All routes that answer in our own form."""
    models = control.models
    settings = models.settings

    async def predict(request: Request) -> Response:
        async with control.admitted(request, *which_model(request)) as admission:
            top_k = _top_k(request, settings.top_k)
            with admission.stage("decode"):
                images = await read_images(request, admission)
            predictions = await admission.predict(images)
            return await asyncio.get_running_loop().run_in_executor(
                control.documents, _answer, admission.loaded, predictions, top_k
            )

    async def describe(request: Request) -> Response:
        return JSONResponse(model_details(models.get(*which_model(request))))

    async def index(request: Request) -> Response:
        require_no_query(request)
        models.require_loaded()
        return JSONResponse(_index(models.all()))

    async def reload(_: Request) -> Response:
        return JSONResponse(_index(await models.reload()))

    return [
        Route("/v1/predict", predict, methods=["POST"]),
        Route("/v1/model", describe),
        Route("/v1/models", index),
        Route("/admin/reload", reload, methods=["POST"]),
    ]


def _answer(loaded: LoadedVersion, predictions: Predictions, top_k: int) -> Response:
    return JSONResponse(
        {
            "model": model_summary(loaded),
            "predictions": predictions.to_json(loaded.predictor.spec, top_k),
        }
    )


def _top_k(request: Request, default: int) -> int:
    """How many classes each prediction lists, where the model has as many: at most MAX_TOP_K.

    Raises APIError for what is no number from 1 on.
    """
    asked = request.query_params.get("top_k")
    if asked is None:
        return default
    digits = asked.lstrip("0")
    if not (asked.isascii() and asked.isdigit() and digits):
        raise APIError(400, "invalid_top_k", "'top_k' is a whole number from 1 on.")
    # Python refuses to read numbers of thousands of digits.
    return MAX_TOP_K if len(digits) > len(str(MAX_TOP_K)) else min(int(digits), MAX_TOP_K)


def _index(served: Iterable[LoadedVersion]) -> dict[str, list[dict[str, object]]]:
    return {"models": [model_summary(loaded) for loaded in served]}
