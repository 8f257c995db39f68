"""Components of the OpenAPI document that operations refer to: answers, headers, parameters, keys."""

from __future__ import annotations

from typing import Any

from service.api.open_inference import JSON_LENGTH
from service.openapi.schemas import ref, schemas
from service.settings import Settings

Json = dict[str, Any]

PROBLEM, V2_PROBLEM = "Problem", "InferenceProblem"
TEXT: Json = {"type": "string"}
_NAME: Json = {"type": "string", "minLength": 1}
_NUMBER: Json = {"type": "string", "pattern": "^[1-9][0-9]*$"}
KEYS: Json = {
    "key": {"type": "http", "scheme": "bearer", "description": "An API key"},
    "keyHeader": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key"},
}
ADMIN: Json = {
    "admin": {"type": "http", "scheme": "bearer", "description": "The admin key"},
    "adminHeader": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The admin key"},
}


_ID: Json = {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"}
_HEADERS: Json = {
    "RequestId": {"required": True, "schema": _ID, "description": "Names this request in the server's log"},
    "RetryAfter": {
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
        "description": "Seconds after which the same request may succeed",
    },
    "Authenticate": {"required": True, "schema": {"const": "Bearer"}},
    "JsonLength": {
        "schema": {"type": "integer", "minimum": 0},
        "description": "With application/octet-stream: the bytes of JSON before those of the tensors",
    },
}


def components(settings: Settings, security: Json) -> Json:
    """`#/components`."""
    return {
        "schemas": schemas(settings),
        "responses": {
            f"{shape}{status}": _problem(shape, status, settings)
            for shape in (PROBLEM, V2_PROBLEM)
            for status in _meanings(settings)
        },
        "headers": _HEADERS,
        "parameters": _parameters(settings),
        "securitySchemes": security,
    }


def ok(schema: Json, *media_types: str) -> Json:
    """A 200 with this body, JSON unless another type is named."""
    return {
        "description": "The answer",
        "headers": {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}},
        "content": {kind: {"schema": schema} for kind in media_types or ("application/json",)},
    }


def _meanings(settings: Settings) -> dict[int, str]:
    bounds = f"{settings.max_body} bytes, {settings.max_images} images, or {settings.max_pixels} pixels of one image"
    return {
        400: "The request cannot be read; `code` says why",
        401: "No known key was sent",
        404: "There is nothing of that name",
        413: f"More than {bounds}",
        415: "The body is of a type that is not taken",
        422: "The new file was refused, and what was served stays",
        429: "The server is at its limit, or what this client may ask is spent",
        500: "The server failed to answer; the cause is in its log",
        503: "The models are still loading",
        504: f"No prediction within {settings.deadline:g} s",
    }


def _problem(shape: str, status: int, settings: Settings) -> Json:
    answer = ok(ref(shape))
    answer["description"] = _meanings(settings)[status]
    if status in (429, 503, 504):
        answer["headers"]["Retry-After"] = {"$ref": "#/components/headers/RetryAfter"}
    if status == 401:
        answer["headers"]["WWW-Authenticate"] = {"$ref": "#/components/headers/Authenticate"}
    return answer


def _parameters(settings: Settings) -> Json:
    return {
        "RequestId": {
            "name": "X-Request-Id",
            "in": "header",
            "schema": TEXT,
            "description": "Comes back if it is 1 to 64 letters, digits, dots, hyphens or underscores",
        },
        "JsonLength": {"name": JSON_LENGTH, "in": "header", **_HEADERS["JsonLength"]},
        "ModelName": {
            "name": "name",
            "in": "path",
            "required": True,
            "schema": _NAME,
            **({"example": settings.model.stem} if settings.model.suffix else {}),
        },
        "SampleName": {
            "name": "name",
            "in": "path",
            "required": True,
            "schema": _NAME,
        },
        "ModelVersion": {
            "name": "version",
            "in": "path",
            "required": True,
            "schema": _NUMBER,
            "example": "1",
        },
        "WhichModel": {
            "name": "model",
            "in": "query",
            "schema": _NAME,
            "description": "Where several are served: the one that is meant",
        },
        "WhichVersion": {
            "name": "version",
            "in": "query",
            "schema": _NUMBER,
            "description": "Of that model, instead of its newest",
        },
    }
