"""`POST /v1/predict`: right answers, and bad requests that harm nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from ducat_serve.images import RESIZE_POLICY
from ducat_serve.predictor import Predictor
from service.middleware.body_limit import BodyLimit
from tests.support.http_client import (
    DIGITS,
    GOOD,
    MULTIPART,
    assert_error,
    bomb,
    encode,
    part,
    predictions,
    send,
)

# Right answers


def test_prediction_is_the_models_own(client: TestClient, predictor: Predictor) -> None:
    response = send(client, GOOD)
    assert response.status_code == 200
    assert response.json() == {
        "model": {
            "name": "model",
            "version": "1",
            "network": "resnet-small",
            "weights_digest": predictor.spec.weights_digest,
            "function_digest": predictor.function_digest,
            "precision": "float32",
            "threat_model": "linf 0.1",
            "robustness": "robustness not measured",
            "resizing": RESIZE_POLICY,
        },
        "predictions": predictor(DIGITS[:1]).to_json(predictor.spec, 5),
    }
    assert len(predictions(response)[0]["top_k"]) == 5


def test_several_images_are_answered_in_order(client: TestClient, predictor: Predictor) -> None:
    answer = predictions(send(client, *(encode(image) for image in DIGITS[:20])))
    expected = predictor(DIGITS[:20])
    assert [entry["class_id"] for entry in answer] == expected.label.tolist()
    assert len(set(expected.label.tolist())) > 1  # else the order would not show
    assert answer == expected.to_json(predictor.spec, 5)


def test_concurrent_clients_get_their_own_answers(client: TestClient, predictor: Predictor) -> None:
    expected = predictor(DIGITS[:64]).label.tolist()
    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda image: predictions(send(client, encode(image))), DIGITS[:64])
        assert [answer[0]["class_id"] for answer in answers] == expected


def grey16(image: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(image[..., 0].astype(np.uint16) * 257)


@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(lambda a: encode(Image.fromarray(a).convert("L")), id="grey"),
        pytest.param(lambda a: encode(grey16(a)), id="16-bit grey"),
        pytest.param(
            lambda a: encode(Image.fromarray(a).convert("P", palette=Image.Palette.ADAPTIVE)), id="P"
        ),
        pytest.param(lambda a: encode(Image.fromarray(a).convert("RGBA")), id="alpha"),
        pytest.param(lambda a: encode(a, "BMP"), id="BMP"),
        pytest.param(lambda a: encode(a, "WEBP", lossless=True), id="WebP"),
    ],
)
def test_lossless_encodings_give_the_same_prediction(
    client: TestClient, convert: Callable[[NDArray[np.uint8]], bytes]
) -> None:
    for image in DIGITS[:5]:
        assert predictions(send(client, convert(image))) == predictions(send(client, encode(image)))


def test_cmyk_jpeg(client: TestClient) -> None:
    for image in DIGITS[:5]:
        data = encode(Image.fromarray(image).convert("CMYK"), "JPEG", quality=100, subsampling=0)
        upright = predictions(send(client, encode(image)))[0]
        answer = predictions(send(client, data))[0]
        assert answer["confidence"] == pytest.approx(upright["confidence"], abs=0.05)
        assert answer["label"] == upright["label"]


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 1), (8, 3)])
def test_exif_rotation_is_applied(client: TestClient, orientation: int, turns: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for image in DIGITS[:5]:
        rotated = encode(np.ascontiguousarray(np.rot90(image, turns)), exif=exif)
        assert predictions(send(client, rotated)) == predictions(send(client, encode(image)))


def test_one_pixel(client: TestClient) -> None:
    assert len(predictions(send(client, encode(DIGITS[0][:1, :1])))) == 1


@pytest.mark.parametrize("kind", ["text/plain", "image/jpg", "application/octet-stream"])
def test_content_type_of_the_part_does_not_matter(client: TestClient, kind: str) -> None:
    answer = send(client, GOOD, filename="../../etc/passwd", kind=kind)
    assert predictions(answer) == predictions(send(client, GOOD))


def test_model_page_tells_what_was_measured(client: TestClient, predictor: Predictor) -> None:
    body = client.get("/v1/model").json()
    assert body["robustness"] == body["robustness_summary"] == "robustness not measured"
    assert body["spec"] == predictor.spec.model_dump(mode="json")
    assert body["source_sha256"] == predictor.source_sha256
    assert (body["name"], body["provider"]) == ("model", "CPUExecutionProvider")


def test_demo_page(client: TestClient) -> None:
    response = client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "/v1/predict" in response.text


# Bad requests


def bad_image(data: bytes) -> dict[str, Any]:
    return {"content": part(data) + b"--B--\r\n", "headers": MULTIPART}


def body(content: bytes) -> dict[str, Any]:
    return {"content": content, "headers": MULTIPART}


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        pytest.param(bad_image(b""), 400, "invalid_image", id="empty file"),
        pytest.param(bad_image(b"text\n" * 100), 400, "invalid_image", id="text"),
        pytest.param(bad_image(encode(DIGITS[0], "JPEG")[:-100]), 400, "invalid_image", id="truncated JPEG"),
        pytest.param(bad_image(GOOD[:-30]), 400, "invalid_image", id="truncated PNG"),
        pytest.param(bad_image(encode(DIGITS[0], "GIF")), 400, "invalid_image", id="GIF"),
        pytest.param(
            bad_image(encode(DIGITS[0], "WEBP", save_all=True, append_images=[Image.fromarray(DIGITS[1])])),
            400,
            "invalid_image",
            id="animated WebP",
        ),
        pytest.param(bad_image(bomb()), 413, "image_too_large", id="bomb"),
        pytest.param(
            body(part(GOOD) + part(b"text") + b"--B--"), 400, "invalid_image", id="one of two is bad"
        ),
        pytest.param(body(b"--B--\r\n"), 400, "missing_image", id="no part"),
        pytest.param(
            body(part(GOOD, 'name="file"; filename="a.png"') + b"--B--"),
            400,
            "unexpected_file",
            id="another field",
        ),
        pytest.param(
            body(part(b"http://169.254.169.254/", 'name="image"') + b"--B--"), 400, "not_a_file", id="URL"
        ),
        pytest.param(body(b""), 400, "malformed_form", id="no body"),
        pytest.param(body(b"\x00garbage"), 400, "malformed_form", id="garbage"),
        pytest.param(body(part(GOOD)[:-40]), 400, "malformed_form", id="cut in the image"),
        pytest.param(
            body(part(GOOD) + part(GOOD)[:-40]), 400, "malformed_form", id="cut in the second image"
        ),
        pytest.param(body(part(GOOD, "") + b"--B--"), 400, "malformed_form", id="part without name"),
        pytest.param(
            {"content": part(GOOD), "headers": {"content-type": "multipart/form-data"}},
            400,
            "malformed_form",
            id="no boundary",
        ),
        pytest.param(
            {
                "content": part(GOOD) + b"--B--",
                "headers": {"content-type": MULTIPART["content-type"] + "; charset=undefined"},
            },
            400,
            "malformed_form",
            id="unusable charset",
        ),
        pytest.param({"json": {"image": "x"}}, 400, "invalid_request", id="JSON of another shape"),
        pytest.param({"data": {"image": "x"}}, 415, "unsupported_media_type", id="urlencoded"),
        pytest.param({"content": GOOD}, 415, "unsupported_media_type", id="no content type"),
        pytest.param(body(part(GOOD) * 101 + b"--B--"), 413, "too_many_images", id="101 files"),
        pytest.param(body(bytes(50_000_000)), 413, "body_too_large", id="50 MB"),
        pytest.param(
            body(part(bytes(50_000_000)) + b"--B--"), 413, "body_too_large", id="50 MB in one good form"
        ),
    ],
)
def test_bad_request_is_told_why_and_harms_nobody(
    client: TestClient, request_: dict[str, Any], status: int, code: str
) -> None:
    assert_error(client.post("/v1/predict", **request_), status, code)
    assert len(predictions(send(client, GOOD))) == 1


def test_large_body_without_content_length(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        yield part(b"")[:-2]
        yield from (bytes(1_000_000) for _ in range(50))

    request = client.build_request("POST", "/v1/predict", content=chunks(), headers=MULTIPART)
    assert "content-length" not in request.headers
    assert_error(client.send(request), 413, "body_too_large")
    assert len(predictions(send(client, GOOD))) == 1


def test_body_limit_stops_reading() -> None:
    """A body that announces too much is not read; a missing or false Content-Length gains nothing."""
    read = 0
    sent: list[Message] = []

    async def endless() -> Message:
        nonlocal read
        read += 1000
        return {"type": "http.request", "body": bytes(1000), "more_body": True}

    async def application(_scope: Scope, receive: Receive, _send: Send) -> None:
        while True:
            await receive()

    async def send(message: Message) -> None:
        sent.append(message)

    for announced, expected in ((None, 11_000), (b"10", 11_000), (b"10001", 0), (b"-1", 0)):
        headers = [] if announced is None else [(b"content-length", announced)]
        read, sent = 0, []
        scope: Scope = {"type": "http", "path": "/v1/predict", "headers": headers}
        asyncio.run(BodyLimit(application, 10_000, 80_000)(scope, endless, send))
        assert sent[0]["status"] == 413
        assert read == expected


@pytest.mark.parametrize(
    "path", ["/nope", "/v1/predict/", "/v1", "/v2/models", "/../etc/passwd", "/%2e%2e/x"]
)
def test_unknown_path(client: TestClient, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        assert_error(client.request(method, path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/predict"),
        ("PUT", "/v1/predict"),
        ("OPTIONS", "/v1/predict"),
        ("POST", "/v1/model"),
        ("POST", "/"),
        ("GET", "/v2/models/model/infer"),
    ],
)
def test_wrong_method(client: TestClient, method: str, path: str) -> None:
    response = client.request(method, path)
    assert_error(response, 405, "method_not_allowed")
    assert response.headers["allow"]
