"""Open Inference Protocol v2 over HTTP, with its binary tensor extension.

https://github.com/kserve/open-inference-protocol; the extension as Triton documents it: a JSON header whose length is
in `Inference-Header-Content-Length`, then the bytes of each binary tensor in order, little-endian.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.responses import JSONResponse, Response

from ducat_serve import __version__
from ducat_serve.predictor import Predictions
from ducat_serve.spec import ModelSpec
from service.api.bounds import require_shape, too_many_images
from service.errors import APIError

MAX_JSON = 2 * 2**20  # bytes: pixels of some 300 images of 32x32, or of 4 of 224x224
_MAX_DIGITS = 12
MAX_JSON_PARTS = 64  # lists and objects, besides those of nested data
# How many images there are, as JSON that is not parsed says.
_COUNT = re.compile(rb'"shape"\s*:\s*\[\s*(\d{1,12})')
JSON_LENGTH = "Inference-Header-Content-Length"
OUTPUTS = {"logits": "FP32", "label": "INT64", "dummy_mass": "FP32"}


@dataclass(frozen=True)
class InferRequest:
    """What a client asks for: uint8 images [N, H, W, channels], and outputs as name -> whether binary."""

    id: str | None
    images: NDArray[np.uint8]
    outputs: dict[str, bool]


def server_metadata(has_repository: bool) -> dict[str, Any]:
    """Response of `GET /v2`; ``has_repository``: whether the routes of the model repository extension are there."""
    return {
        "name": "ducat-serve",
        "version": __version__,
        "extensions": ["binary_tensor_data", *(["model_repository"] if has_repository else [])],
    }


def model_metadata(name: str, versions: list[str], spec: ModelSpec) -> dict[str, Any]:
    """Response of `GET /v2/models/NAME`."""
    height, width = spec.image_size
    shapes = {"logits": [-1, spec.num_classes], "label": [-1], "dummy_mass": [-1]}
    return {
        "name": name,
        "versions": versions,
        "platform": "onnx_onnxruntime",
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, height, width, spec.channels]}],
        "outputs": [
            {"name": output, "datatype": datatype, "shape": shapes[output]}
            for output, datatype in OUTPUTS.items()
        ],
    }


def read_request(body: bytes, json_length: str | None, spec: ModelSpec, max_images: int) -> InferRequest:
    """Read an inference request; ``json_length`` is the header of the binary extension. Raises APIError."""
    header, binary = _split(body, json_length)
    _require_few_parts(header, spec, max_images)
    document = _json(header)
    tensor = _only_input(document)
    shape = _shape(tensor, spec, max_images)
    size = _parameters(tensor).get("binary_data_size")
    if size is None:
        if binary:
            raise _bad_size(0, len(binary))
        images = _from_list(tensor.get("data"), shape)
    else:
        if "data" in tensor or type(size) is not int or size != prod(shape) or len(binary) != size:
            raise _bad_size(prod(shape), len(binary))
        images = np.frombuffer(binary, dtype=np.uint8).reshape(shape)
    return InferRequest(_id(document), images, _outputs(document))


def write_response(name: str, version: str, asked: InferRequest, predictions: Predictions) -> Response:
    """Response of `POST /v2/models/NAME/infer`: JSON, or JSON and bytes where a binary output was asked for."""
    tensors, parts = [], []
    for output, is_binary in asked.outputs.items():
        array = getattr(predictions, output)
        tensor: dict[str, Any] = {
            "name": output,
            "datatype": OUTPUTS[output],
            "shape": list(array.shape),
        }
        if is_binary:
            parts.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
            tensor["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            tensor["data"] = array.reshape(-1).tolist()
        tensors.append(tensor)
    body: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": tensors}
    if asked.id is not None:
        body["id"] = asked.id
    if not parts:
        return JSONResponse(body)
    header = json.dumps(body, allow_nan=False).encode()
    return Response(
        b"".join([header, *parts]),
        media_type="application/octet-stream",
        headers={JSON_LENGTH: str(len(header))},
    )


def _split(body: bytes, json_length: str | None) -> tuple[bytes, bytes]:
    if json_length is None:
        return body, b""
    # No length of a body has more digits, and Python refuses to read numbers of thousands of them.
    is_number = json_length.isascii() and json_length.isdigit() and len(json_length) <= _MAX_DIGITS
    if not is_number or int(json_length) > len(body):
        raise APIError(
            400, "invalid_header", f"{JSON_LENGTH} is the length of the JSON, at most that of the body."
        )
    length = int(json_length)
    return body[:length], body[length:]


def read_options(body: bytes, kinds: dict[str, type]) -> dict[str, Any]:
    """The JSON object in a body, whose keys in ``kinds`` are of these types or missing; {} for an empty body.

    Raises APIError (400). Other keys are ignored.
    """
    document = _json(body) if body else {}
    for name, kind in kinds.items():
        if not isinstance(document.get(name, kind()), kind):
            raise APIError(400, "invalid_request", f"'{name}' is of the wrong type.")
    return document


def _require_few_parts(header: bytes, spec: ModelSpec, max_images: int) -> None:
    """Millions of empty lists or objects would take gigabytes before anybody could look at them.

    Numbers hold up every thread while they are parsed, so large tensors come as bytes.
    """
    if len(header) > MAX_JSON:
        message = f"JSON is at most {MAX_JSON} bytes; send larger tensors as binary data ({JSON_LENGTH})."
        raise APIError(413, "json_too_large", message)
    height, width = spec.image_size
    lists = max_images * (1 + height * (1 + width)) + MAX_JSON_PARTS
    if header.count(b"[") > lists or header.count(b"{") > MAX_JSON_PARTS:
        if (said := _COUNT.search(header)) is not None and int(said[1]) > max_images:
            raise too_many_images(max_images)
        raise APIError(
            400,
            "invalid_request",
            f"The JSON has more than {MAX_JSON_PARTS} objects, or as many lists beside those of data.",
        )


def _json(header: bytes) -> dict[str, Any]:
    try:
        document = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise APIError(400, "invalid_json", "The body is not JSON.") from error
    if not isinstance(document, dict):
        raise APIError(400, "invalid_request", "The body is not a JSON object.")
    return document


def _only_input(document: dict[str, Any]) -> dict[str, Any]:
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise APIError(400, "invalid_request", "Send {'inputs': [one tensor named 'images']}.")
    tensor: dict[str, Any] = inputs[0]
    if tensor.get("name") != "images" or tensor.get("datatype") != "UINT8":
        raise APIError(400, "invalid_tensor", "The input tensor is named 'images' and has datatype UINT8.")
    return tensor


def _shape(tensor: dict[str, Any], spec: ModelSpec, max_images: int) -> tuple[int, ...]:
    given = tensor.get("shape")
    shape = tuple(given) if isinstance(given, list) else ()
    require_shape(shape, spec, max_images, "The shape of 'images' is")
    return shape


def _from_list(data: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    # As objects, because NumPy would take true among integers for 1. Ragged rows stay lists and are refused.
    array = np.asarray(data, dtype=object)
    values = array.ravel().tolist()
    if array.shape not in (shape, (prod(shape),)) or set(map(type, values)) != {int}:
        message = f"'data' must hold {prod(shape)} integers, flat or nested as 'shape' says."
        raise APIError(400, "invalid_data", message)
    if min(values) < 0 or max(values) > 255:
        raise APIError(400, "invalid_data", "Pixels are integers from 0 to 255.")
    return np.array(values, dtype=np.uint8).reshape(shape)


def _id(document: dict[str, Any]) -> str | None:
    request_id = document.get("id")
    if request_id is None or (isinstance(request_id, str) and _is_unicode(request_id)):
        return request_id
    raise APIError(400, "invalid_id", "'id' is a string of Unicode.")


def _is_unicode(text: str) -> bool:
    """Whether it can be sent back: JSON may spell half of a surrogate pair, which no encoding has."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _outputs(document: dict[str, Any]) -> dict[str, bool]:
    """The outputs that are asked for, all unless named, and whether each is to be binary."""
    default = _flag(document, "binary_data_output", False)
    named = document.get("outputs")
    if named is None or named == []:
        return dict.fromkeys(OUTPUTS, default)
    if not isinstance(named, list) or not all(
        isinstance(o, dict) and isinstance(o.get("name"), str) and o["name"] in OUTPUTS for o in named
    ):
        raise APIError(400, "invalid_outputs", f"'outputs' names some of {', '.join(OUTPUTS)}.")
    for output in named:
        if unknown := sorted(_parameters(output).keys() - {"binary_data"}):
            message = f"Output '{output['name']}' has no parameter {unknown[0][:40]!a}, only 'binary_data'."
            raise APIError(400, "invalid_parameters", message)
    return {output["name"]: _flag(output, "binary_data", default) for output in named}


def _flag(holder: dict[str, Any], name: str, default: bool) -> bool:
    value = _parameters(holder).get(name, default)
    if not isinstance(value, bool):
        raise APIError(400, "invalid_parameters", f"'{name}' is true or false.")
    return value


def _parameters(holder: dict[str, Any]) -> dict[str, Any]:
    parameters = holder.get("parameters")
    if parameters is None:  # clients write null for what is not there, as for 'id' and 'outputs'
        return {}
    if not isinstance(parameters, dict):
        raise APIError(400, "invalid_parameters", "'parameters' is an object.")
    return parameters


def _bad_size(expected: int, found: int) -> APIError:
    return APIError(
        400,
        "invalid_data",
        f"The JSON says {expected} bytes of binary data and no 'data' beside them; {found} bytes follow it.",
    )
