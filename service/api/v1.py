"""Routes of our own API: predictions and descriptions below /v1; /admin/reload answers as /v1/models does."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ducat_serve.spec import ModelSpec
from service.api.admission import AdmissionControl
from service.api.images import read_images
from service.api.responses import model_details, model_summary
from service.errors import APIError
from service.models.served import LoadedVersion


def v1_routes(control: AdmissionControl) -> list[Route]:
    """All routes that answer in our own form."""
    models = control.models
    settings = models.settings

    async def predict(request: Request) -> Response:
        async with control.admitted(request, *_which(request)) as admission:
            spec = admission.loaded.predictor.spec
            top_k = _top_k(request, spec, settings.top_k)
            with admission.stage("decode"):
                images = await read_images(request, admission)
            predictions = await admission.predict(images)
        return JSONResponse(
            {
                "model": model_summary(admission.loaded),
                "predictions": predictions.to_json(spec, top_k),
            }
        )

    async def describe(request: Request) -> Response:
        return JSONResponse(model_details(models.get(*_which(request))))

    async def index(_: Request) -> Response:
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


def _which(request: Request) -> tuple[str | None, str | None]:
    """The model and the version that a request names, if any."""
    return request.query_params.get("model"), request.query_params.get("version")


def _top_k(request: Request, spec: ModelSpec, default: int) -> int:
    """How many classes each prediction lists: all of them where more are asked for. Raises APIError for no number."""
    asked = request.query_params.get("top_k")
    if asked is None:
        return default
    digits = asked.lstrip("0")
    if not (asked.isascii() and asked.isdigit() and digits):
        raise APIError(400, "invalid_top_k", "'top_k' is a whole number from 1 on.")
    # Python refuses to read numbers of thousands of digits, and no model has a million classes.
    return spec.num_classes if len(digits) > 6 else min(int(digits), spec.num_classes)


def _index(served: Iterable[LoadedVersion]) -> dict[str, list[dict[str, object]]]:
    return {"models": [model_summary(loaded) for loaded in served]}
