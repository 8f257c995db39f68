"""JSON Schemas of all bodies: those of the models' own descriptions from pydantic, the others as they are written.

Answers list every key as required. tests/service/test_openapi.py compares them with real answers, keys that are not
listed included.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from ducat_serve.images import RESIZE_POLICY
from ducat_serve.report import NOT_MEASURED
from ducat_serve.spec import ModelSpec
from service.api.forms import FIELD
from service.api.open_inference import OUTPUTS
from service.settings import Settings

Json = dict[str, Any]

_STRING: Json = {"type": "string"}
_VERSION: Json = {"type": "string", "pattern": "^[1-9][0-9]*$"}
_NUMBER: Json = {"type": "number"}
_FRACTION: Json = {"type": "number", "minimum": 0, "maximum": 1}
_CHOICE: Json = {
    "label": _STRING,
    "class_id": {"type": "integer", "minimum": 0},
    "confidence": {**_FRACTION, "description": "Softmax of the folded logits"},
}
_SIZE: Json = {"type": "integer", "minimum": 1}


def schemas(settings: Settings) -> Json:
    """`#/components/schemas`, by name."""
    _, described = models_json_schema(
        [(ModelSpec, "serialization")], ref_template="#/components/schemas/{model}"
    )
    return {**described["$defs"], **_v1(settings), **_v2(settings)}


def _v1(settings: Settings) -> Json:
    count = {"minItems": 1, "maxItems": settings.max_images}
    return {
        "Problem": _object(error=_object(code=_STRING, message=_STRING)),
        "ImageForm": _object(
            **{FIELD: {"type": "array", **count, "items": {"type": "string", "format": "binary"}}}
        ),
        "Base64Images": _object(
            images={
                "type": "array",
                **count,
                "items": {"type": "string", "format": "byte", "contentEncoding": "base64"},
            }
        ),
        "Prediction": _object(
            **_CHOICE,
            top_k={
                "type": "array",
                "minItems": 1,
                "maxItems": settings.top_k,
                "items": _object(**_CHOICE),
                "description": "The likeliest classes, best first",
            },
            dummy_mass={**_FRACTION, "description": "A signal of shifted inputs, not a defence"},
        ),
        "PredictAnswer": _object(
            model=ref("ModelSummary"),
            predictions={"type": "array", **count, "items": ref("Prediction")},
        ),
        "Models": _object(models={"type": "array", "items": ref("ModelSummary")}),
        "ModelSummary": _object(
            name=_STRING,
            version=_VERSION,
            network=_STRING,
            weights_digest=_STRING,
            threat_model=_STRING,
            robustness={**_STRING, "description": "One line; what was measured, or that nothing was"},
            resizing={"const": RESIZE_POLICY},
        ),
        "ModelDetails": _object(
            name=_STRING,
            version=_VERSION,
            spec=ref("ModelSpec"),
            robustness={"anyOf": [ref("RobustnessReport"), {"const": NOT_MEASURED}]},
            robustness_summary=_STRING,
            robustness_in_words=_object(
                sentences={"type": "array", "items": _STRING},
                warnings={"type": "array", "items": _STRING},
                dummy_mass={"type": ["string", "null"]},
            ),
            source_sha256=_STRING,
            provider={**_STRING, "description": "What ONNX Runtime computes on"},
            resizing={"const": RESIZE_POLICY},
        ),
    }


def _v2(settings: Settings) -> Json:
    shape = {
        "type": "array",
        "prefixItems": [{**_SIZE, "maximum": settings.max_images}, _SIZE, _SIZE, _SIZE],
        "minItems": 4,
        "maxItems": 4,
        "description": "[N, H, W, channels] of exactly the model's size",
    }
    pixel = {"type": "integer", "minimum": 0, "maximum": 255}
    declared = _object(name=_STRING, datatype=_STRING, shape={"type": "array", "items": {"type": "integer"}})
    output_name = {"enum": list(OUTPUTS)}
    request = _object(inputs={"type": "array", "minItems": 1, "maxItems": 1, "items": ref("InputTensor")})
    request["properties"] |= {
        "id": {"type": ["string", "null"], "description": "Comes back in the answer"},
        "outputs": {
            "type": ["array", "null"],
            "items": {
                **_object(name=output_name),
                "properties": {"name": output_name, "parameters": _flags("binary_data")},
            },
            "description": "Those that are wanted; all unless given",
        },
        "parameters": _flags("binary_data_output"),
    }
    tensor = _object(name={"const": "images"}, datatype={"const": "UINT8"}, shape=shape)
    tensor["properties"] |= {
        "data": {
            "type": "array",
            "items": {"anyOf": [pixel, {"type": "array"}]},
            "description": "Pixels, flat or nested as `shape` says; left out where they follow the JSON as bytes",
        },
        "parameters": {"type": "object", "properties": {"binary_data_size": _SIZE}},
    }
    answer = _object(
        model_name=_STRING,
        model_version=_VERSION,
        outputs={"type": "array", "items": ref("OutputTensor")},
    )
    answer["properties"]["id"] = _STRING
    output = _object(
        name=output_name,
        datatype={"enum": sorted(set(OUTPUTS.values()))},
        shape={"type": "array", "items": _SIZE},
    )
    output["properties"] |= {
        "data": {"type": "array", "items": _NUMBER},
        "parameters": _object(binary_data_size=_SIZE),
    }
    return {
        "InferenceProblem": _object(error=_STRING, code=_STRING),
        "RepositoryEntry": _object(
            name=_STRING, version=_VERSION, state={"enum": ["READY", "UNAVAILABLE"]}, reason=_STRING
        ),
        "ServerMetadata": _object(
            name=_STRING, version=_STRING, extensions={"type": "array", "items": _STRING}
        ),
        "ModelMetadata": _object(
            name=_STRING,
            versions={"type": "array", "items": _VERSION},
            platform=_STRING,
            inputs={"type": "array", "items": declared},
            outputs={"type": "array", "items": declared},
        ),
        "InferRequest": request,
        "InputTensor": tensor,
        "InferAnswer": answer,
        "OutputTensor": output,
    }


def _object(**properties: Json) -> Json:
    """An object that has all of these."""
    return {"type": "object", "required": list(properties), "properties": properties}


def _flags(name: str) -> Json:
    return {"type": "object", "properties": {name: {"type": "boolean"}}}


def ref(name: str) -> Json:
    """To one of these."""
    return {"$ref": f"#/components/schemas/{name}"}
