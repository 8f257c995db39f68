"""The OpenAPI 3.1 document of the service, made from its settings: the answer of `GET /openapi.json`.

Tests hold it against the routes, and schemathesis against a running server. A new route is one more entry of `_paths`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ducat_serve import __version__
from service.api.forms import FIELD
from service.api.images import NPY
from service.api.open_inference import JSON_LENGTH
from service.openapi.components import ADMIN, KEYS, PROBLEM, TEXT, V2_PROBLEM, components, ok
from service.openapi.schemas import ref
from service.page.samples import KINDS, MAX_SAMPLES
from service.settings import Settings

Json = dict[str, Any]

_FILE: Json = {"type": "string", "format": "binary"}
_ALWAYS = (413, 500)  # the body limit and the last resort are around every route
_MODEL = (503,)
_PREDICTION = (400, 429, 503, 504)


def document(settings: Settings) -> Json:
    """Every route that a server with these settings answers, with its limits and keys. No key is in it."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ducat-serve",
            "version": __version__,
            "description": "Robust image classification; `GET /v1/model` says what was measured on the model.",
        },
        "tags": [
            {"name": "v1", "description": "Image files in, labels out."},
            {"name": "v2", "description": "The Open Inference Protocol, with its binary tensor extension."},
            {"name": "operation", "description": "Probes, metrics, administration."},
        ],
        "paths": _paths(settings),
        "components": components(settings, _keys(settings) | _admin(settings)),
    }  # fmt: skip


def _paths(settings: Settings) -> Json:
    key, admin = _keys(settings), _admin(settings)
    paths = {
        "/": {"get": _operation("page", "A page to try the model", "v1", ok(TEXT, "text/html"))},
        "/samples": {
            "get": _operation("samples", "Names of the images that the page offers", "v1",
                              ok({"type": "array", "items": TEXT, "maxItems": MAX_SAMPLES}))
        },
        "/samples/{name}": {
            "parameters": [_parameter("SampleName")],
            "get": _operation("sample", "One of these images", "v1", ok(_FILE, *sorted(set(KINDS.values()))), (404,)),
        },
        "/openapi.json": {
            "get": _operation("openapi", "This document", "operation", ok({"type": "object"}))
        },
        "/v1/predict": {"parameters": _WHICH, "post": _predict(key)},
        "/v1/model": {
            "parameters": _WHICH,
            "get": _operation("model", "What the model is, what was measured on it, and how it runs here", "v1",
                              ok(ref("ModelDetails")), (400, 404, *_MODEL), key)
        },
        "/v1/models": {
            "get": _operation("models", "All that is served, in every version", "v1", ok(ref("Models")), _MODEL, key)
        },
        **_v2(key),
        "/livez": {"get": _probe("livez", "Whether the process answers")},
        "/healthz": {"get": _probe("healthz", "The same as /livez")},
        "/readyz": {"get": _probe("readyz", "200 only when the model is loaded, checked and warm", 503)},
        "/metrics": {
            "get": _operation("metrics", "Metrics in Prometheus' text format", "operation",
                              ok(TEXT, "text/plain"), guard=admin)
        },
    }  # fmt: skip
    if admin:
        paths |= _administration(admin)
    return paths


def _administration(admin: Json) -> Json:
    named = [_parameter("ModelName")]
    return {
        "/admin/reload": {
            "post": _operation("reload", "Read every model again and swap in those that are sound", "operation",
                               ok(ref("Models")), (422,), admin)
        },
        "/v2/repository/index": {
            "post": {
                **_operation("repositoryIndex", "What is served, and what is on disk and is not", "v2",
                             ok({"type": "array", "items": ref("RepositoryEntry")}), (400, 422), admin),
                "requestBody": _json_body({"type": "object", "properties": {"ready": {"type": "boolean"}}}),
            }
        },
        "/v2/repository/models/{name}/load": {
            "parameters": named,
            "post": {
                **_operation("loadModel", "Read every version of a model again and swap them in if all are sound", "v2",
                             ok({"type": "object"}), (400, 404, 422), admin),
                "requestBody": _json_body(
                    {"type": "object", "properties": {"parameters": {"type": "object", "maxProperties": 0}}}
                ),
            },
        },
        "/v2/repository/models/{name}/unload": {
            "parameters": named,
            "post": _operation("unloadModel", "Serve a model no longer", "v2", ok({"type": "object"}),
                               (404, *_MODEL), admin),
        },
    }  # fmt: skip


def _json_body(schema: Json) -> Json:
    return {"required": False, "content": {"application/json": {"schema": schema}}}


def _predict(guard: Json) -> Json:
    operation = _operation(
        "predict", "Classify images", "v1", ok(ref("PredictAnswer")), (404, 415, *_PREDICTION), guard
    )
    operation["requestBody"] = {
        "required": True,
        "description": "PNG, JPEG, WebP or BMP files, resized to the model's size; or an array, never resized.",
        "content": {
            "multipart/form-data": {
                "schema": ref("ImageForm"),
                "encoding": {FIELD: {"contentType": "image/png, image/jpeg, image/webp, image/bmp"}},
            },
            "image/*": {"schema": _FILE},
            "application/octet-stream": {"schema": _FILE},
            "application/json": {"schema": ref("Base64Images")},
            NPY: {
                "schema": {**_FILE, "description": "uint8 [N, H, W, channels] of exactly the model's size"}
            },
        },
    }
    return operation


def _v2(key: Json) -> Json:
    ready = _object(ready={"const": True})
    paths: Json = {
        "/v2": {"get": _operation("serverMetadata", "The server", "v2", ok(ref("ServerMetadata")))},
        "/v2/health/live": {
            "get": _operation("serverLive", "Whether the process answers", "v2", ok(_object(live={"const": True})))
        },
        "/v2/health/ready": {
            "get": _operation("serverReady", "Whether the model would answer", "v2", ok(ready), _MODEL)
        },
    }  # fmt: skip
    for path, of in (("/v2/models/{name}", ""), ("/v2/models/{name}/versions/{version}", "OfVersion")):
        named = [_parameter("ModelName"), *([_parameter("ModelVersion")] if of else [])]
        missing = (404, *_MODEL)
        paths[path] = {
            "parameters": named,
            "get": _operation(f"modelMetadata{of}", "Inputs and outputs of the model", "v2",
                              ok(ref("ModelMetadata")), missing, key),
        }  # fmt: skip
        paths[f"{path}/ready"] = {
            "parameters": named,
            "get": _operation(f"modelReady{of}", "Whether the model would answer", "v2",
                              ok(_object(name=TEXT, ready={"const": True})), missing, key),
        }  # fmt: skip
        paths[f"{path}/infer"] = {"parameters": named, "post": _infer(f"infer{of}", key)}
    return paths


def _infer(name: str, guard: Json) -> Json:
    answer = ok(ref("InferAnswer"))
    answer["content"]["application/octet-stream"] = {"schema": _FILE}
    answer["headers"][JSON_LENGTH] = {"$ref": "#/components/headers/JsonLength"}
    operation = _operation(name, "Classify a tensor of images", "v2", answer, (404, *_PREDICTION), guard)
    operation["parameters"].append(_parameter("JsonLength"))
    operation["requestBody"] = {
        "required": True,
        "content": {
            "application/json": {"schema": ref("InferRequest")},
            "application/octet-stream": {
                "schema": {**_FILE, "description": "an InferRequest, then the bytes of its tensor"}
            },
        },
    }
    return operation


def _operation(
    name: str, summary: str, tag: str, ok: Json, problems: Iterable[int] = (), guard: Json | None = None
) -> Json:
    """An operation of ours; ``guard`` has the security schemes, any one of which opens it."""
    statuses = sorted({*problems, *_ALWAYS, *((401,) if guard else ())})
    shape = V2_PROBLEM if tag == "v2" else PROBLEM
    return {
        "operationId": name,
        "summary": summary,
        "tags": [tag],
        "parameters": [_parameter("RequestId")],
        "security": [{scheme: []} for scheme in guard or ()],
        "responses": {"200": ok, **{str(s): {"$ref": f"#/components/responses/{shape}{s}"} for s in statuses}},
    }  # fmt: skip


def _probe(name: str, summary: str, *failures: int) -> Json:
    """A route that BentoML answers: no request id, plain text."""
    content = {"text/plain": {"schema": TEXT}}
    return {
        "operationId": name,
        "summary": summary,
        "tags": ["operation"],
        "security": [],
        "responses": {
            "200": {"description": "Yes", "content": content},
            **{str(status): {"description": "No", "content": content} for status in failures},
        },
    }


def _keys(settings: Settings) -> Json:
    return KEYS if settings.keys_file or settings.api_keys else {}


def _admin(settings: Settings) -> Json:
    return ADMIN if settings.admin_key else {}


_WHICH = [{"$ref": f"#/components/parameters/Which{what}"} for what in ("Model", "Version")]


def _parameter(name: str) -> Json:
    return {"$ref": f"#/components/parameters/{name}"}


def _object(**properties: Json) -> Json:
    return {"type": "object", "required": list(properties), "properties": properties}
