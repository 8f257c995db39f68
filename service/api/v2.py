"""Routes of the Open Inference Protocol v2: health, metadata, inference; and Triton's model repository extension."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ducat_serve.errors import DucatError
from service.api import open_inference
from service.api.admission import AdmissionControl
from service.api.query import model_in_path
from service.errors import APIError
from service.models.registry import log
from service.models.served import LoadedVersion


def v2_routes(control: AdmissionControl) -> list[Route]:
    """All routes below /v2; those of a model exist with and without its version."""
    models = control.models

    async def server(_: Request) -> Response:
        # Auth answers 404 below /v2/repository where there is no admin key.
        return JSONResponse(open_inference.server_metadata(models.settings.admin_key is not None))

    async def live(_: Request) -> Response:
        models.require_live()
        return JSONResponse({"live": True})

    async def ready(_: Request) -> Response:
        control.require_ready()
        return JSONResponse({"ready": True})

    def named(request: Request) -> LoadedVersion:
        return models.get(*model_in_path(request))

    async def metadata(request: Request) -> Response:
        loaded = named(request)
        versions = models.versions(loaded.name)
        return JSONResponse(open_inference.model_metadata(loaded.name, versions, loaded.predictor.spec))

    async def model_ready(request: Request) -> Response:
        loaded = named(request)
        control.require_ready()
        return JSONResponse({"name": loaded.name, "ready": True})

    async def infer(request: Request) -> Response:
        async with control.admitted(request, *model_in_path(request)) as admission:
            loaded = admission.loaded
            with admission.stage("decode"):
                body = await admission.read_body()
                asked = await asyncio.get_running_loop().run_in_executor(
                    control.documents,
                    open_inference.read_request,
                    body,
                    request.headers.get(open_inference.JSON_LENGTH),
                    loaded.predictor.spec,
                    models.settings.max_images,
                )
            admission.take(len(asked.images))
            await admission.identify(asked.images)
            predictions = await admission.predict(asked.images)
            return await asyncio.get_running_loop().run_in_executor(
                control.documents,
                open_inference.write_response,
                loaded.name,
                loaded.version,
                asked,
                predictions,
            )

    async def index(request: Request) -> Response:
        if open_inference.read_options(await request.body(), {"ready": bool}).get("ready"):
            return JSONResponse(_index(models.all(), {}))
        try:
            on_disk = await asyncio.to_thread(models.repository.find)
        except DucatError as error:
            log.error("The models on disk cannot be read: %s", error)
            message = "The models on disk cannot be read; the cause is in the server's log."
            raise APIError(422, "repository_unreadable", message) from error
        return JSONResponse(_index(models.all(), on_disk))

    async def load(request: Request) -> Response:
        if open_inference.read_options(await request.body(), {"parameters": dict}).get("parameters"):
            message = "Models are loaded from the server's own disk, as they are; 'parameters' are not taken."
            raise APIError(400, "invalid_parameters", message)
        await models.load(request.path_params["name"])
        return JSONResponse({})

    async def unload(request: Request) -> Response:
        await models.unload(request.path_params["name"])
        return JSONResponse({})

    of_a_model = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
    return [
        Route("/v2", server),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        *(Route(path, metadata) for path in of_a_model),
        *(Route(f"{path}/ready", model_ready) for path in of_a_model),
        *(Route(f"{path}/infer", infer, methods=["POST"]) for path in of_a_model),
        Route("/v2/repository/index", index, methods=["POST"]),
        Route("/v2/repository/models/{name}/load", load, methods=["POST"]),
        Route("/v2/repository/models/{name}/unload", unload, methods=["POST"]),
    ]


def _index(served: list[LoadedVersion], on_disk: Mapping[str, Mapping[str, Path]]) -> list[dict[str, str]]:
    """As Triton answers: everything that is served, and what is on disk and is not."""
    ready = {(one.name, one.version) for one in served}
    others = {(name, version) for name, versions in on_disk.items() for version in versions} - ready
    return [
        {"name": name, "version": version, "state": "READY", "reason": ""} for name, version in sorted(ready)
    ] + [
        {"name": name, "version": version, "state": "UNAVAILABLE", "reason": "unloaded"}
        for name, version in sorted(others)
    ]
