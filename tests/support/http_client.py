"""What the tests of the service share: images, requests, and a look at the answers."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

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


def assert_error(response: Any, status: int, code: str) -> None:
    """One shape for every error, that of the protocol below /v2, and nothing about the server's insides."""
    assert response.status_code == status, response.text
    body = response.json()
    is_v2 = response.request.url.path.startswith("/v2")
    message = body["error"] if is_v2 else body["error"]["message"]
    assert body == (
        {"error": message, "code": code} if is_v2 else {"error": {"code": code, "message": message}}
    )
    assert isinstance(message, str)
    assert message
    for secret in ("Traceback", 'File "', ".py", str(Path.cwd()), "/tmp", "Error("):
        assert secret not in response.text
