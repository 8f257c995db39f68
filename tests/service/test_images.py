"""The ways to send images besides a form: raw body, JSON with base64, .npy."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import pickle
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.testclient import TestClient
from starlette.types import Message

from service.api.admission import Admission
from service.api.images import read_images
from service.settings import Settings
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
from tests.support.request_bodies import npy


def post(client: TestClient, content: bytes, kind: str) -> Any:
    return client.post("/v1/predict", content=content, headers={"content-type": kind})


def base64_of(*images: bytes) -> dict[str, Any]:
    return {"images": [base64.b64encode(image).decode() for image in images]}


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "IMAGE/PNG; q=1", "application/octet-stream"])
def test_an_image_as_the_whole_body(client: TestClient, kind: str) -> None:
    """What it is, is read from the image; the type only says that there is one."""
    assert predictions(post(client, GOOD, kind)) == predictions(send(client, GOOD))


def test_base64_and_npy_are_the_same_prediction(client: TestClient) -> None:
    images = DIGITS[:3]
    expected = predictions(send(client, *map(encode, images)))
    assert predictions(client.post("/v1/predict", json=base64_of(*map(encode, images)))) == expected
    for version in ((1, 0), (2, 0)):
        assert predictions(post(client, npy(images, version), "application/x-npy")) == expected


@pytest.mark.parametrize("path", ["/v1/predict", "/v2/models/model/infer"])
def test_a_compressed_body_is_named_as_such(client: TestClient, path: str) -> None:
    headers = {"content-type": "image/png", "content-encoding": "GZIP"}
    response = client.post(path, content=gzip.compress(GOOD), headers=headers)
    assert_error(response, 415, "unsupported_encoding")
    assert "identity" in response.text
    as_it_is = {"content-type": "image/png", "content-encoding": "Identity"}
    predictions(client.post("/v1/predict", content=GOOD, headers=as_it_is))


def lying_header(shape: str) -> bytes:
    """A .npy file with a header of our choice and 192 bytes behind it."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(192)


ONE = np.zeros((1, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        pytest.param(b"", 400, "invalid_npy", id="empty"),
        pytest.param(b"\x93NUMPY", 400, "invalid_npy", id="magic alone"),
        pytest.param(GOOD, 400, "invalid_npy", id="an image"),
        pytest.param(npy(ONE)[:-1], 400, "invalid_npy", id="cut"),
        pytest.param(npy(ONE) + b"x", 400, "invalid_npy", id="too long"),
        pytest.param(npy(ONE.astype(np.float32)), 400, "invalid_shape", id="floats"),
        pytest.param(npy(ONE[0]), 400, "invalid_shape", id="no batch"),
        pytest.param(npy(ONE[:0]), 400, "invalid_shape", id="no image"),
        pytest.param(npy(np.zeros((1, 16, 16, 3), np.uint8)), 400, "invalid_shape", id="another size"),
        pytest.param(
            npy(np.asfortranarray(np.zeros((2, 8, 8, 3), np.uint8))), 400, "invalid_shape", id="Fortran"
        ),
        pytest.param(npy(np.zeros((101, 8, 8, 3), np.uint8)), 413, "too_many_images", id="101 images"),
        pytest.param(lying_header("(1, 8, 8, 3)")[:-1], 400, "invalid_npy", id="header by hand, cut"),
        pytest.param(lying_header("(10**9, 8, 8, 3)"), 400, "invalid_npy", id="expression in the header"),
        pytest.param(lying_header("(100, 8, 8, 3)"), 400, "invalid_npy", id="shape lies"),
        pytest.param(lying_header("(-1, 8, 8, 3)"), 400, "invalid_shape", id="negative"),
        pytest.param(lying_header("(9999999999999, 8, 8, 3)"), 413, "too_many_images", id="huge"),
        pytest.param(lying_header("(True, 8, 8, 3)"), 400, "invalid_shape", id="True, which equals 1"),
        pytest.param(pickle.dumps(ONE), 400, "invalid_npy", id="a pickle"),
    ],
)
def test_bad_npy(client: TestClient, content: bytes, status: int, code: str) -> None:
    assert_error(post(client, content, "application/x-npy"), status, code)
    assert len(predictions(post(client, lying_header("(1, 8, 8, 3)"), "application/x-npy"))) == 1


def test_an_array_of_objects_is_never_unpickled(client: TestClient) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return pytest.fail, ("it was unpickled",)

    buffer = io.BytesIO()
    objects = np.empty((1, 8, 8, 3), object)
    objects[...] = Bomb()
    np.lib.format.write_array(buffer, objects, allow_pickle=True)
    assert_error(post(client, buffer.getvalue(), "application/x-npy"), 400, "invalid_shape")


DATA_URLS = {"images": ["data:image/png;base64,AAAA"] * 60}


@pytest.mark.parametrize(
    ("document", "status", "code"),
    [
        pytest.param([], 400, "invalid_request", id="list"),
        pytest.param({"images": []}, 400, "invalid_request", id="no image"),
        pytest.param({"images": "abc"}, 400, "invalid_request", id="text"),
        pytest.param({"images": [1]}, 400, "invalid_request", id="number"),
        pytest.param({"images": ["http://169.254.169.254/"]}, 400, "invalid_base64", id="URL"),
        pytest.param(base64_of(GOOD) | {"model": "other"}, 400, "invalid_request", id="another key"),
        pytest.param(DATA_URLS, 400, "invalid_base64", id="data URLs"),
        pytest.param({"images": ["https://a.example/b.png"] * 60}, 400, "invalid_base64", id="many URLs"),
        pytest.param({"images": ["é"]}, 400, "invalid_base64", id="not ASCII"),
        pytest.param({"images": ["AAAA"]}, 400, "invalid_image", id="no image inside"),
        pytest.param(base64_of(bomb()), 413, "image_too_large", id="bomb"),
        pytest.param(base64_of(*[GOOD] * 101), 413, "too_many_images", id="101 images"),
        pytest.param(base64_of(*[GOOD] * 500), 413, "too_many_images", id="500 images"),
    ],
)
def test_bad_json(client: TestClient, document: Any, status: int, code: str) -> None:
    assert_error(client.post("/v1/predict", json=document), status, code)
    assert len(predictions(client.post("/v1/predict", json=base64_of(GOOD)))) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 10, b"\xff\xfe"])
def test_json_that_is_none(client: TestClient, content: bytes) -> None:
    assert_error(post(client, content, "application/json"), 400, "invalid_json")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"[" * 100_000, id="lists in lists"),
        pytest.param(b'{"a": [' + b"{}, " * 100_000 + b"{}]}", id="objects"),
        pytest.param(b'{"images": [' + b"1," * 200 + b"1]}", id="numbers"),
        pytest.param(b"{" + b",".join(b'"%d":1' % n for n in range(200)) + b"}", id="keys"),
    ],
)
def test_json_of_many_parts_is_refused_before_it_is_parsed(
    client: TestClient, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("json.loads", lambda *_: pytest.fail("it was parsed"))
    answer = post(client, content, "application/json")
    monkeypatch.undo()
    assert_error(answer, 400, "invalid_request")


class Undecoded(Admission):
    """Says how many bytes are held when the images of a request are about to wait for a decoder."""

    held = 0

    def require_decoders(self, images: int) -> None: ...

    def take(self, images: int) -> None: ...

    async def decode(self, files: Sequence[bytes]) -> NDArray[np.uint8]:
        # A thread that has parsed a document lets go of it only after its answer is there, perhaps after this line.
        # There is one thread here, and it has let go when it takes its next work.
        await asyncio.get_running_loop().run_in_executor(self.control.documents, int)
        self.held, _ = tracemalloc.get_traced_memory()
        return np.zeros((len(files), 8, 8, 3), np.uint8)


@pytest.mark.parametrize("kind", ["multipart/form-data", "application/json", "image/png"])
def test_images_that_wait_are_held_once(kind: str) -> None:
    size = 8 * 2**20

    async def receive() -> Message:
        image = bytes(size)
        body = {
            "multipart/form-data": lambda: part(image) + b"--B--",
            "application/json": lambda: json.dumps(base64_of(image)).encode(),
            "image/png": lambda: image,
        }[kind]()
        return {"type": "http.request", "body": body, "more_body": False}

    async def held() -> int:
        with ThreadPoolExecutor(1) as documents:
            control: Any = SimpleNamespace(
                models=SimpleNamespace(settings=Settings(model=Path("model.onnx"))), documents=documents
            )
            loaded: Any = SimpleNamespace(predictor=SimpleNamespace(spec=None))
            content_type = MULTIPART["content-type"] if kind == "multipart/form-data" else kind
            headers = [(b"content-type", content_type.encode())]
            request = Request({"type": "http", "headers": headers}, receive)
            admission = Undecoded(control, loaded, request)
            await read_images(request, admission)
            return admission.held

    tracemalloc.start()
    try:
        assert asyncio.run(held()) < 1.2 * size
    finally:
        tracemalloc.stop()
