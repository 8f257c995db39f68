"""What a request asks for where nobody looks is refused: otherwise another model or version would answer with 200."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.support.application import serving_path
from tests.support.http_client import DIGITS, GOOD, assert_error, encode, predictions, send
from tests.support.model_repository import place
from tests.support.request_bodies import tensor

FILE = ("a.png", GOOD, "image/png")


@pytest.mark.parametrize(
    ("query", "code", "said"),
    [
        ("vesrion=1", "unknown_parameter", "Did you mean 'version'?"),
        ("topk=2&model=model", "unknown_parameter", "Did you mean 'top_k'?"),
        ("zzz", "unknown_parameter", "what is taken is model, version, top_k."),
        ("x" * 5000, "unknown_parameter", "'" + "x" * 40 + "' is no parameter"),
        ("version=1&version=2", "repeated_parameter", "'version' is given twice"),
    ],
)
def test_parameters_that_are_not_understood(client: TestClient, query: str, code: str, said: str) -> None:
    for answer in (
        client.post(f"/v1/predict?{query}", files={"image": FILE}),
        client.get(f"/v1/model?{query}"),
        client.get(f"/v1/examples?{query}"),
    ):
        assert_error(answer, 400, code)
        assert said in answer.json()["error"]["message"]


def test_addresses_that_take_no_parameters(client: TestClient) -> None:
    assert_error(client.get("/v1/models?model=model"), 400, "unknown_parameter")
    body = tensor([0] * 192)
    assert client.post("/v2/models/model/infer", json=body).status_code == 200
    for answer in (
        client.post("/v2/models/model/infer?version=1", json=body),
        client.get("/v2/models/model?version=1"),
        client.get("/v2/models/model/ready?version=1"),
    ):
        assert_error(answer, 400, "unknown_parameter")
        assert "/v2/models/NAME/versions/VERSION" in answer.json()["error"]


def test_a_version_in_the_body_is_not_answered_by_the_newest(onnx_model: Path, tmp_path: Path) -> None:
    for version in ("1", "2"):
        place(onnx_model, tmp_path, "digits", version)
    with serving_path(tmp_path) as (client, _):
        in_address = client.post("/v1/predict?model=digits&version=1", files={"image": FILE})
        assert in_address.json()["model"]["version"] == "1"
        for name, value in (("model", "cifar"), ("version", "1")):
            in_form = client.post("/v1/predict?model=digits", files={"image": FILE}, data={name: value})
            in_json = client.post(
                "/v1/predict", json={"images": [base64.b64encode(GOOD).decode()], name: value}
            )
            for answer in (in_form, in_json):
                assert_error(answer, 400, "invalid_request")
                assert f"POST /v1/predict?{name}=" in answer.text


def test_a_file_in_another_field_is_not_left_out(client: TestClient) -> None:
    other = encode(DIGITS[1])
    for files in (
        [("image", FILE), ("images", ("b.png", other, "image/png"))],
        [("images", ("b.png", other, "image/png")), ("image", FILE)],
        [("image", FILE), ("second", ("", other, "image/png"))],
        [("image", FILE), ("empty", ("b.png", b"", "image/png"))],
    ):
        answer = client.post("/v1/predict", files=files)
        assert_error(answer, 400, "unexpected_file")
        assert "belongs into the field 'image'" in answer.text


@pytest.mark.parametrize(
    "field",
    [
        pytest.param({"data": {"note": "text", "_charset_": "utf-8"}}, id="text"),
        pytest.param({"nothing": ("", b"", "application/octet-stream")}, id="a file input without a file"),
    ],
)
def test_what_browsers_send_beside_the_image_is_taken(client: TestClient, field: dict[str, Any]) -> None:
    data = field.pop("data", None)
    answer = client.post("/v1/predict", files={"image": FILE, **field}, data=data)
    assert predictions(answer) == predictions(send(client, GOOD))
