"""The Open Inference Protocol v2 over HTTP with JSON tensors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from ducat_serve.predictor import Predictor
from tests.http_client import (
    DIGITS,
    assert_problem,
    encode,
    predictions,
    send,
)


def tensor(data: Any, **changes: Any) -> dict[str, Any]:
    return {
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": data, **changes}]
    }


def infer(client: TestClient, body: Any) -> Any:
    return client.post("/v2/models/model/infer", json=body)


def test_v2_metadata(client: TestClient) -> None:
    assert client.get("/v2").json()["name"] == "ducat-serve"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/models/model/ready").json() == {"name": "model", "ready": True}
    metadata = client.get("/v2/models/model").json()
    assert metadata["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}]
    shapes = {output["name"]: (output["datatype"], output["shape"]) for output in metadata["outputs"]}
    assert shapes == {"logits": ("FP32", [-1, 10]), "label": ("INT64", [-1]), "dummy_mass": ("FP32", [-1])}


@pytest.mark.parametrize("flat", [True, False])
def test_v2_infer_is_the_answer_of_v1(client: TestClient, predictor: Predictor, flat: bool) -> None:
    images = DIGITS[:3]
    data = images.ravel().tolist() if flat else images.tolist()
    answer = infer(client, {"id": "7", **tensor(data, shape=[3, 8, 8, 3])}).json()
    assert (answer["model_name"], answer["id"]) == ("model", "7")
    outputs = {output["name"]: output for output in answer["outputs"]}
    expected = predictor(images)
    np.testing.assert_array_equal(
        np.array(outputs["logits"]["data"], np.float32).reshape(outputs["logits"]["shape"]), expected.logits
    )
    v1 = predictions(send(client, *map(encode, images)))
    assert outputs["label"]["data"] == [entry["class_id"] for entry in v1]
    assert outputs["dummy_mass"]["data"] == [entry["dummy_mass"] for entry in v1]
    assert outputs["label"]["shape"] == outputs["dummy_mass"]["shape"] == [3]


PIXELS = [0] * 192


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param([], 400, "invalid_request", id="list"),
        pytest.param({}, 400, "invalid_request", id="empty"),
        pytest.param({"inputs": []}, 400, "invalid_request", id="no tensor"),
        pytest.param({"inputs": tensor(PIXELS)["inputs"] * 2}, 400, "invalid_request", id="two tensors"),
        pytest.param({"inputs": ["images"]}, 400, "invalid_request", id="tensor is text"),
        pytest.param(tensor(PIXELS, name="x"), 400, "invalid_tensor", id="name"),
        pytest.param(tensor(PIXELS, datatype="FP32"), 400, "invalid_tensor", id="datatype"),
        pytest.param(tensor(PIXELS, shape=[1, 3, 8, 8]), 400, "invalid_shape", id="channels first"),
        pytest.param(tensor(PIXELS, shape=[192]), 400, "invalid_shape", id="flat shape"),
        pytest.param(tensor(PIXELS, shape=[]), 400, "invalid_shape", id="no shape"),
        pytest.param(tensor(PIXELS, shape="1883"), 400, "invalid_shape", id="shape is text"),
        pytest.param(tensor(PIXELS, shape=[True, 8, 8, 3]), 400, "invalid_shape", id="boolean N"),
        pytest.param(tensor(PIXELS, shape=[-1, 8, 8, 3]), 400, "invalid_shape", id="negative N"),
        pytest.param(tensor([], shape=[0, 8, 8, 3]), 400, "invalid_shape", id="no image"),
        pytest.param(tensor(PIXELS, shape=[10**30, 8, 8, 3]), 413, "too_many_images", id="huge N"),
        pytest.param(tensor(PIXELS * 101, shape=[101, 8, 8, 3]), 413, "too_many_images", id="101 images"),
        pytest.param(tensor(PIXELS[1:]), 400, "invalid_data", id="one too few"),
        pytest.param(tensor([*PIXELS, 0]), 400, "invalid_data", id="one too many"),
        pytest.param(tensor([PIXELS[:96]] * 2), 400, "invalid_data", id="nested otherwise"),
        pytest.param(tensor([PIXELS[:96], PIXELS[:95]]), 400, "invalid_data", id="ragged"),
        pytest.param(tensor(None), 400, "invalid_data", id="no data"),
        pytest.param(tensor("x" * 192), 400, "invalid_data", id="text"),
        pytest.param(tensor(["0"] * 192), 400, "invalid_data", id="digits as text"),
        pytest.param(tensor([0.0] * 192), 400, "invalid_data", id="floats"),
        pytest.param(tensor([True] * 192), 400, "invalid_data", id="booleans"),
        pytest.param(tensor([True, *PIXELS[1:]]), 400, "invalid_data", id="one boolean"),
        pytest.param(tensor([256, *PIXELS[1:]]), 400, "invalid_data", id="256"),
        pytest.param(tensor([-1, *PIXELS[1:]]), 400, "invalid_data", id="-1"),
        pytest.param(tensor([2**70, *PIXELS[1:]]), 400, "invalid_data", id="2**70"),
        pytest.param({**tensor(PIXELS), "id": "\ud800"}, 400, "invalid_id", id="id is not Unicode"),
        pytest.param({**tensor(PIXELS), "id": {}}, 400, "invalid_id", id="id is no text"),
    ],
)
def test_v2_bad_tensor(client: TestClient, body: Any, status: int, code: str) -> None:
    response = client.post(
        "/v2/models/model/infer", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert_problem(response, status, code)
    assert infer(client, tensor(PIXELS)).status_code == 200


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"9" * 5000])
def test_v2_body_that_is_not_json(client: TestClient, content: bytes) -> None:
    assert_problem(client.post("/v2/models/model/infer", content=content), 400, "invalid_json")


@pytest.mark.parametrize("path", ["", "/ready", "/infer"])
def test_v2_unknown_model(client: TestClient, path: str) -> None:
    method = "POST" if path == "/infer" else "GET"
    response = client.request(method, f"/v2/models/other{path}", content=b"{}" if path == "/infer" else None)
    assert_problem(response, 404, "unknown_model")
