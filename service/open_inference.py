"""Open Inference Protocol v2 over HTTP with JSON tensors (https://github.com/kserve/open-inference-protocol)."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ducat_serve import __version__
from ducat_serve.predictor import Predictions
from ducat_serve.spec import ModelSpec
from service.problems import Problem


def server_metadata() -> dict[str, Any]:
    """Answer of `GET /v2`."""
    return {"name": "ducat-serve", "version": __version__, "extensions": []}


def model_metadata(name: str, spec: ModelSpec) -> dict[str, Any]:
    """Answer of `GET /v2/models/NAME`."""
    height, width = spec.image_size
    return {
        "name": name,
        "versions": ["1"],
        "platform": "onnx_onnxruntime",
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, height, width, spec.channels]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, spec.num_classes]},
            {"name": "label", "datatype": "INT64", "shape": [-1]},
            {"name": "dummy_mass", "datatype": "FP32", "shape": [-1]},
        ],
    }


def read_request(body: Any, spec: ModelSpec, max_images: int) -> NDArray[np.uint8]:
    """The tensor `images` of an inference request, uint8 [N, H, W, channels]. Raises Problem."""
    inputs = body.get("inputs") if isinstance(body, dict) else None
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Problem(400, "invalid_request", "Send {'inputs': [one tensor named 'images']}.")
    tensor = inputs[0]
    expected = [*spec.image_size, spec.channels]
    shape = tensor.get("shape")
    if tensor.get("name") != "images" or tensor.get("datatype") != "UINT8":
        raise Problem(400, "invalid_tensor", "The input tensor is named 'images' and has datatype UINT8.")
    if (
        not isinstance(shape, list)
        or not all(type(n) is int and n > 0 for n in shape)
        or shape[1:] != expected
    ):
        raise Problem(400, "invalid_shape", f"The shape of 'images' is [N, {', '.join(map(str, expected))}].")
    if shape[0] > max_images:
        raise Problem(413, "too_many_images", f"At most {max_images} images per request.")
    # As objects, because NumPy would take true among integers for 1. Ragged rows stay lists and are refused.
    data = np.asarray(tensor.get("data"), dtype=object)
    values = data.ravel().tolist()
    if data.shape not in (tuple(shape), (prod(shape),)) or set(map(type, values)) != {int}:
        message = f"'data' must hold {prod(shape)} integers, flat or nested as 'shape' says."
        raise Problem(400, "invalid_data", message)
    if min(values) < 0 or max(values) > 255:
        raise Problem(400, "invalid_data", "Pixels are integers from 0 to 255.")
    return np.array(values, dtype=np.uint8).reshape(shape)


def read_id(body: dict[str, Any]) -> str | None:
    """The request's own `id`, which the answer repeats. Raises Problem."""
    request_id = body.get("id")
    if request_id is None or (isinstance(request_id, str) and request_id.isprintable()):
        return request_id
    raise Problem(400, "invalid_id", "'id' is a string of printable characters.")


def write_response(name: str, request_id: str | None, predictions: Predictions) -> dict[str, Any]:
    """Answer of `POST /v2/models/NAME/infer`."""
    answer: dict[str, Any] = {
        "model_name": name,
        "model_version": "1",
        "outputs": [
            _tensor("logits", "FP32", predictions.logits),
            _tensor("label", "INT64", predictions.label),
            _tensor("dummy_mass", "FP32", predictions.dummy_mass),
        ],
    }
    return answer if request_id is None else {**answer, "id": request_id}


def _tensor(name: str, datatype: str, array: NDArray[Any]) -> dict[str, Any]:
    return {
        "name": name,
        "datatype": datatype,
        "shape": list(array.shape),
        "data": array.reshape(-1).tolist(),
    }
