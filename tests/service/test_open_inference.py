"""The Open Inference Protocol v2 over HTTP with JSON tensors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from ducat_serve.predictor import Predictor
from service.api.open_inference import MAX_JSON
from tests.support.application import ADMIN, bearer, serving
from tests.support.http_client import (
    DIGITS,
    assert_error,
    encode,
    predictions,
    send,
)
from tests.support.request_bodies import binary, binary_tensor, tensor


def infer(client: TestClient, body: Any) -> Any:
    return client.post("/v2/models/model/infer", json=body)


def test_v2_metadata(client: TestClient) -> None:
    assert client.get("/v2").json()["name"] == "ducat-serve"
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/models/model/ready").json() == {"name": "model", "ready": True}
    metadata = client.get("/v2/models/model").json()
    assert metadata["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}]
    shapes = {output["name"]: (output["datatype"], output["shape"]) for output in metadata["outputs"]}
    assert shapes == {"logits": ("FP32", [-1, 10]), "label": ("INT64", [-1]), "dummy_mass": ("FP32", [-1])}


def test_the_repository_is_an_extension_where_it_answers(predictor: Predictor) -> None:
    with serving(predictor, admin_key=ADMIN) as client:
        assert client.get("/v2").json()["extensions"] == ["binary_tensor_data", "model_repository"]
        answer = client.post("/v2/repository/index", json={"ready": True}, headers=bearer(ADMIN))
        assert answer.status_code == 200


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
NO_NAMES: list[Any] = [[], {}, 1, None]


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
        pytest.param(
            tensor(np.zeros((150, 8, 8, 3), int).tolist(), shape=[150, 8, 8, 3]),
            413,
            "too_many_images",
            id="more lists than are parsed",
        ),
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
    assert_error(response, status, code)
    assert infer(client, tensor(PIXELS)).status_code == 200


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 5000, b"9" * 5000])
def test_v2_body_that_is_not_json(client: TestClient, content: bytes) -> None:
    assert_error(client.post("/v2/models/model/infer", content=content), 400, "invalid_json")


@pytest.mark.parametrize("content", [b'{"inputs": [' + b"[], " * 20_000 + b"[]]}", b"{" * 100])
def test_v2_json_of_many_parts_is_refused_before_it_is_parsed(
    client: TestClient, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 images of 8 x 8 pixels are 7,300 lists at most."""
    monkeypatch.setattr("json.loads", lambda *_: pytest.fail("it was parsed"))
    answer = client.post("/v2/models/model/infer", content=content)
    monkeypatch.undo()
    assert_error(answer, 400, "invalid_request")


def test_long_json_is_refused_before_it_is_parsed(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers hold up every thread of the server while they are parsed."""
    monkeypatch.setattr("json.loads", lambda *_: pytest.fail("it was parsed"))
    answer = client.post("/v2/models/model/infer", content=b"[" + b"1," * MAX_JSON + b"1]")
    monkeypatch.undo()
    assert_error(answer, 413, "json_too_large")


@pytest.mark.parametrize("path", ["/v2/models/model/infer", "/v2/models/model/versions/1/infer"])
def test_v2_binary_tensors_both_ways(client: TestClient, predictor: Predictor, path: str) -> None:
    images = DIGITS[:3]
    outputs = [{"name": "dummy_mass"}, {"name": "logits", "parameters": {"binary_data": True}}]
    request = binary(binary_tensor(3, images.size, outputs=outputs), images.tobytes(), path=path)
    response = client.post(**request)
    assert response.status_code == 200, response.text
    length = int(response.headers["Inference-Header-Content-Length"])
    header = json.loads(response.content[:length])
    mass, logits = header["outputs"]
    expected = predictor(images)
    assert (mass["name"], mass["data"]) == ("dummy_mass", expected.dummy_mass.tolist())
    assert (logits["name"], "data" in logits) == ("logits", False)
    assert logits["parameters"]["binary_data_size"] == len(response.content) - length == 3 * 10 * 4
    found = np.frombuffer(response.content[length:], "<f4").reshape(logits["shape"])
    np.testing.assert_array_equal(found, expected.logits)


@pytest.mark.parametrize(
    "parameters", [{"classification": 3}, {"binary_data": True, "shared_memory_region": "x"}, {"\ud800é": 1}]
)
def test_v2_a_parameter_that_nobody_knows_is_named(client: TestClient, parameters: dict[str, Any]) -> None:
    """The client would take the answer for what it has asked for."""
    body = tensor(PIXELS) | {"outputs": [{"name": "label"}, {"name": "logits", "parameters": parameters}]}
    response = client.post("/v2/models/model/infer", content=json.dumps(body))
    assert_error(response, 400, "invalid_parameters")
    assert f"Output 'logits' has no parameter {[*parameters][-1]!a}" in response.json()["error"]


def test_v2_no_output_that_is_named_means_all(client: TestClient) -> None:
    assert infer(client, tensor(PIXELS) | {"outputs": []}).json() == infer(client, tensor(PIXELS)).json()


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        pytest.param(binary(binary_tensor(1, 192), bytes(191)), 400, "invalid_data", id="one byte too few"),
        pytest.param(binary(binary_tensor(1, 192), bytes(193)), 400, "invalid_data", id="one byte too many"),
        pytest.param(
            binary(binary_tensor(1, 191), bytes(191)), 400, "invalid_data", id="size of another shape"
        ),
        pytest.param(binary(binary_tensor(1, True), bytes(192)), 400, "invalid_data", id="boolean size"),
        pytest.param(binary(binary_tensor(1, -192), bytes(192)), 400, "invalid_data", id="negative size"),
        pytest.param(binary(binary_tensor(1, "192"), bytes(192)), 400, "invalid_data", id="size is text"),
        pytest.param(binary(binary_tensor(10**12, 192), bytes(192)), 413, "too_many_images", id="huge N"),
        pytest.param(binary(tensor(PIXELS), bytes(1)), 400, "invalid_data", id="bytes nobody speaks of"),
        pytest.param(
            binary(tensor(PIXELS, parameters={"binary_data_size": 192}), bytes(192)),
            400,
            "invalid_data",
            id="data twice",
        ),
        pytest.param(
            binary(binary_tensor(1, 192), bytes(192), "9999"), 400, "invalid_header", id="length lies"
        ),
        pytest.param(
            binary(binary_tensor(1, 192), bytes(192), "9" * 5000), 400, "invalid_header", id="long length"
        ),
        pytest.param(
            binary(binary_tensor(1, 192), bytes(192), "0" * 4301), 400, "invalid_header", id="4,301 zeros"
        ),
        pytest.param(
            binary(binary_tensor(1, 192), bytes(192), "-1"), 400, "invalid_header", id="negative length"
        ),
        pytest.param(
            binary(binary_tensor(1, 192), bytes(192), "x"), 400, "invalid_header", id="length is text"
        ),
        pytest.param(
            binary(binary_tensor(1, 192), bytes(192), "10"), 400, "invalid_json", id="length too short"
        ),
        pytest.param(
            binary(binary_tensor(1, 192, outputs=[{"name": "secret"}]), bytes(192)),
            400,
            "invalid_outputs",
            id="unknown output",
        ),
        *(
            pytest.param(
                binary(binary_tensor(1, 192, outputs=[{"name": name}]), bytes(192)),
                400,
                "invalid_outputs",
                id=f"an output named {name}",
            )
            for name in NO_NAMES
        ),
        pytest.param(
            binary(binary_tensor(1, 192, parameters=[]), bytes(192)),
            400,
            "invalid_parameters",
            id="parameters",
        ),
        pytest.param(
            binary(binary_tensor(1, 192, parameters={"binary_data_output": 1}), bytes(192)),
            400,
            "invalid_parameters",
            id="flag is a number",
        ),
    ],
)
def test_v2_binary_sizes_that_lie(
    client: TestClient, request_: dict[str, Any], status: int, code: str
) -> None:
    assert_error(client.post(**request_), status, code)
    good = client.post(**binary(binary_tensor(1, 192), bytes(192)))
    assert good.json() == infer(client, tensor(PIXELS)).json()


@pytest.mark.parametrize("path", ["", "/ready", "/infer"])
def test_v2_unknown_version(client: TestClient, path: str) -> None:
    method = "POST" if path == "/infer" else "GET"
    assert_error(client.request(method, f"/v2/models/model/versions/2{path}"), 404, "unknown_model")


@pytest.mark.parametrize("path", ["", "/ready", "/infer"])
def test_v2_unknown_model(client: TestClient, path: str) -> None:
    method = "POST" if path == "/infer" else "GET"
    response = client.request(method, f"/v2/models/other{path}", content=b"{}" if path == "/infer" else None)
    assert_error(response, 404, "unknown_model")


def test_null_stands_for_no_parameters(client: TestClient) -> None:
    asked: dict[str, Any] = tensor([0] * 192) | {
        "parameters": None,
        "outputs": [{"name": "label", "parameters": None}],
    }
    asked["inputs"][0]["parameters"] = None
    answer = client.post("/v2/models/model/infer", json=asked)
    assert answer.status_code == 200, answer.text
    assert [output["name"] for output in answer.json()["outputs"]] == ["label"]
