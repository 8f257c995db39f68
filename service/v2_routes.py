"""Routes of the Open Inference Protocol v2: health, metadata, inference."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service import open_inference
from service.door import charge
from service.model import Model
from service.problems import Problem


def v2_routes(model: Model) -> list[Route]:
    """All routes below /v2; those of a model exist with and without its version."""
    settings = model.settings

    async def server(_: Request) -> Response:
        return JSONResponse(open_inference.server_metadata())

    async def live(_: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(_: Request) -> Response:
        model.require_ready()
        return JSONResponse({"ready": True})

    def require_named(request: Request) -> None:
        name, version = (
            request.path_params["name"],
            request.path_params.get("version", open_inference.VERSION),
        )
        if name != model.name or version != open_inference.VERSION:
            raise Problem(404, "unknown_model", f"There is no model '{name}' of version {version} here.")

    async def metadata(request: Request) -> Response:
        require_named(request)
        return JSONResponse(open_inference.model_metadata(model.name, model.get().predictor.spec))

    async def model_ready(request: Request) -> Response:
        require_named(request)
        model.require_ready()
        return JSONResponse({"name": model.name, "ready": True})

    async def infer(request: Request) -> Response:
        require_named(request)
        async with model.admitted() as served:
            body = await request.body()
            asked = await asyncio.get_running_loop().run_in_executor(
                model.decoding,
                open_inference.read_request,
                body,
                request.headers.get(open_inference.JSON_LENGTH),
                served.predictor.spec,
                settings.max_images,
            )
            charge(request, len(asked.images))
            predictions = await model.predict(served, asked.images, request)
        return open_inference.write_response(model.name, asked, predictions)

    named = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
    return [
        Route("/v2", server),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        *(Route(path, metadata) for path in named),
        *(Route(f"{path}/ready", model_ready) for path in named),
        *(Route(f"{path}/infer", infer, methods=["POST"]) for path in named),
    ]
