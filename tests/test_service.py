"""The HTTP service in this process: Starlette's test client around a real exported model, or a fake one."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import logging
import signal
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from ducat_serve.errors import UsageError
from ducat_serve.images import RESIZE_POLICY, decode
from ducat_serve.predictor import Predictions, Predictor
from service.batcher import Batcher
from service.body_limit import BodyLimit
from service.http import Model, create_app
from service.settings import Settings
from training.data.digits import read_digits

DIGITS = read_digits().test.images
MULTIPART = {"content-type": "multipart/form-data; boundary=B"}
WAIT = 30.0  # seconds; reached only when a test fails


def encode(image: NDArray[np.uint8] | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


GOOD = encode(DIGITS[0])


def part(data: bytes, disposition: str = 'name="image"; filename="a.png"') -> bytes:
    return f"--B\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + data + b"\r\n"


def bomb() -> bytes:
    """The start of a 20,000 x 20,000 PNG; nothing behind its header is ever looked at."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(10_000))
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_ready(client: TestClient) -> bool:
    return bool(client.get("/v2/health/ready").status_code == 200)


def send(client: TestClient, *images: bytes, filename: str = "a.png", kind: str = "image/png") -> Any:
    return client.post("/v1/predict", files=[("image", (filename, data, kind)) for data in images])


def predictions(response: Any) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["predictions"]


def assert_problem(response: Any, status: int, code: str) -> None:
    """One shape for every error, and nothing about the server's insides."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body == {"error": {"code": code, "message": body["error"]["message"]}}
    assert body["error"]["message"]
    for secret in ("Traceback", 'File "', ".py", str(Path.cwd()), "/tmp", "Error("):
        assert secret not in response.text


@pytest.fixture(scope="module")
def client(onnx_model: Path) -> Iterator[TestClient]:
    """The service with the real model, ready; no failure inside it reaches the test as an exception."""
    model = Model(Settings(model=onnx_model))
    with TestClient(create_app(model), raise_server_exceptions=False) as client:
        until(lambda: is_ready(client))
        yield client


@pytest.fixture(scope="module")
def predictor(onnx_model: Path) -> Predictor:
    """The same model without the service."""
    return Predictor(onnx_model)


# Right answers


def test_prediction_is_the_models_own(client: TestClient, predictor: Predictor) -> None:
    response = send(client, GOOD)
    assert response.status_code == 200
    assert response.json() == {
        "model": {
            "name": "model",
            "network": "resnet-small",
            "weights_digest": predictor.spec.weights_digest,
            "threat_model": "linf 0.1",
            "robustness": "robustness not measured",
            "resizing": RESIZE_POLICY,
        },
        "predictions": predictor(DIGITS[:1]).to_json(predictor.spec.labels, 5),
    }
    assert len(predictions(response)[0]["top_k"]) == 5


def test_several_images_are_answered_in_order(client: TestClient, predictor: Predictor) -> None:
    answer = predictions(send(client, *(encode(image) for image in DIGITS[:20])))
    expected = predictor(DIGITS[:20])
    assert [entry["class_id"] for entry in answer] == expected.label.tolist()
    assert len(set(expected.label.tolist())) > 1  # else the order would not show
    assert answer == expected.to_json(predictor.spec.labels, 5)


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
            "missing_image",
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
        pytest.param({"json": {"image": "x"}}, 415, "unsupported_media_type", id="JSON"),
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
    assert_problem(client.post("/v1/predict", **request_), status, code)
    assert len(predictions(send(client, GOOD))) == 1


def test_large_body_without_content_length(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        yield part(b"")[:-2]
        yield from (bytes(1_000_000) for _ in range(50))

    request = client.build_request("POST", "/v1/predict", content=chunks(), headers=MULTIPART)
    assert "content-length" not in request.headers
    assert_problem(client.send(request), 413, "body_too_large")
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
        asyncio.run(BodyLimit(application, 10_000)({"type": "http", "headers": headers}, endless, send))
        assert sent[0]["status"] == 413
        assert read == expected


@pytest.mark.parametrize(
    "path", ["/nope", "/v1/predict/", "/v1", "/v2/models", "/../etc/passwd", "/%2e%2e/x"]
)
def test_unknown_path(client: TestClient, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        assert_problem(client.request(method, path), 404, "not_found")


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
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"]


# Open Inference Protocol


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


# A model that loads, blocks or fails


class FakeModel(Model):
    """The real spec around an inference that a test can block (`gate`) or break (`failure`)."""

    def __init__(self, predictor: Predictor, **settings: Any) -> None:
        super().__init__(Settings(model=Path("model.onnx"), **settings))
        self.real = predictor
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.failure: Exception | None = None

    async def start(self) -> None:
        self.predictor = self.real
        self.batcher = Batcher(
            self.infer, max_batch=self.settings.max_batch, max_queue=self.settings.max_queue
        )

    def infer(self, images: NDArray[np.uint8]) -> Predictions:
        self.started.set()
        assert self.gate.wait(WAIT)
        if self.failure is not None:
            raise self.failure
        return self.real(images)


def serve(model: Model) -> TestClient:
    return TestClient(create_app(model), raise_server_exceptions=False)


def test_before_the_model_is_loaded(onnx_model: Path) -> None:
    class Loading(Model):
        async def start(self) -> None:
            await asyncio.Event().wait()

    with serve(Loading(Settings(model=onnx_model))) as client:
        for response in (
            send(client, GOOD),
            client.get("/v1/model"),
            client.get("/v2/health/ready"),
            client.post("/v2/models/model/infer", content=b"{}"),
        ):
            assert_problem(response, 503, "not_ready")
            assert int(response.headers["retry-after"]) >= 1
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/").status_code == 200


@pytest.mark.filterwarnings("ignore")  # BentoML's own imports
def test_readyz_of_bentoml_waits_for_the_model(onnx_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUCAT_SERVE_MODEL", str(onnx_model))
    app = importlib.import_module("service.app")
    service = app.DucatService.inner()
    assert not service.__is_ready__()
    asyncio.run(app._model.start())
    assert service.__is_ready__()
    asyncio.run(app._model.stop())


def test_a_model_that_does_not_load_ends_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    signals: list[int] = []
    monkeypatch.setattr("os.kill", lambda _pid, number: signals.append(number))
    with serve(Model(Settings(model=tmp_path / "missing.onnx"))) as client:
        until(lambda: bool(signals))
        assert_problem(send(client, GOOD), 503, "not_ready")
    assert signals == [signal.SIGTERM]
    assert "missing.onnx" in caplog.text


def test_overload(predictor: Predictor) -> None:
    model = FakeModel(predictor, max_queue=1, max_images=1)
    model.gate.clear()
    with serve(model) as client, ThreadPoolExecutor(1) as pool:
        until(lambda: is_ready(client))
        first = pool.submit(send, client, GOOD)
        assert model.started.wait(WAIT)
        response = send(client, GOOD)
        model.gate.set()
        assert_problem(response, 429, "overloaded")
        assert int(response.headers["retry-after"]) >= 1
        assert len(predictions(first.result(WAIT))) == 1
        assert len(predictions(send(client, GOOD))) == 1


def test_deadline(predictor: Predictor) -> None:
    model = FakeModel(predictor, deadline=0.05)
    model.gate.clear()
    with serve(model) as client:
        until(lambda: is_ready(client))
        response = send(client, GOOD)
        model.gate.set()
        assert_problem(response, 504, "deadline_exceeded")


def test_deadline_covers_decoding_and_decoding_is_bounded(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that hangs: two images at a time are decoded, everybody else gets 504, none piles up."""
    gate, running = threading.Event(), []

    def hang(data: bytes, max_pixels: int) -> Image.Image:
        running.append(1)
        assert gate.wait(WAIT)
        return decode(data, max_pixels)

    monkeypatch.setattr("service.uploads.decode", hang)
    model = FakeModel(predictor, deadline=0.2)
    with serve(model) as client, ThreadPoolExecutor(8) as pool:
        until(lambda: is_ready(client))
        responses = list(pool.map(lambda _: send(client, GOOD), range(8)))
        for response in responses:
            assert_problem(response, 504, "deadline_exceeded")
        assert len(running) == 2
        assert model.requests == 0
        gate.set()
        assert len(predictions(send(client, GOOD))) == 1


def test_settings_that_could_never_serve_a_request_are_refused() -> None:
    with pytest.raises(UsageError, match="max_queue 5 is less than the 100 images"):
        Settings.from_environment({"DUCAT_SERVE_MODEL": "m.onnx", "DUCAT_SERVE_MAX_QUEUE": "5"})


def test_failing_inference(predictor: Predictor, caplog: pytest.LogCaptureFixture) -> None:
    model = FakeModel(predictor)
    with serve(model) as client:
        until(lambda: is_ready(client))
        model.failure = RuntimeError("secret /home/me/model.onnx")
        with caplog.at_level(logging.ERROR):
            response = send(client, GOOD)
        assert_problem(response, 500, "internal_error")
        assert "secret" not in response.text
        assert "secret /home/me/model.onnx" in caplog.text  # the operator does learn the cause
        model.failure = None
        assert len(predictions(send(client, GOOD))) == 1


def test_stopping_answers_what_is_queued(predictor: Predictor) -> None:
    model = FakeModel(predictor)
    model.gate.clear()

    async def scenario() -> None:
        app = create_app(model)
        async with app.router.lifespan_context(app):
            await asyncio.sleep(0)  # lets the model start
            request = asyncio.create_task(model.predict(DIGITS[:1]))
            assert await asyncio.to_thread(model.started.wait, WAIT)
            asyncio.get_running_loop().call_later(0.05, model.gate.set)
        assert request.done()
        assert request.result().label.shape == (1,)

    try:
        asyncio.run(scenario())
    finally:
        model.gate.set()
