"""Forms as clients write them, and hostile ones."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.support.http_client import DIGITS, GOOD, assert_error, encode, part, predictions, send

CLOSED = part(GOOD) + b"--B--"


def post(client: TestClient, body: bytes, kind: str = "multipart/form-data; boundary=B") -> Any:
    return client.post("/v1/predict", content=body, headers={"content-type": kind})


def one_part(head: str) -> bytes:
    return b"--B\r\n" + head.encode() + b"\r\n\r\n" + GOOD + b"\r\n--B--\r\n"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        pytest.param(CLOSED + b"\r\n", "multipart/form-data; boundary=B", id="as it should be"),
        pytest.param(CLOSED, 'Multipart/Form-Data; charset=UTF-8; boundary="B"', id="quoted boundary"),
        pytest.param(b"\r\n" + CLOSED, "multipart/form-data; boundary=B", id="an empty line first"),
        pytest.param(b"preamble\r\n" + CLOSED, "multipart/form-data; boundary=B", id="preamble"),
        pytest.param(CLOSED + b"\r\nepilogue", "multipart/form-data; boundary=B", id="epilogue"),
        pytest.param(
            part(b"text", 'name="note"') + CLOSED, "multipart/form-data; boundary=B", id="another field"
        ),
        pytest.param(
            one_part("content-disposition:form-data;NAME=image;FileName=a.png"),
            "multipart/form-data; boundary=B",
            id="tokens",
        ),
        pytest.param(
            one_part(
                "Content-Type: image/png\r\nContent-Disposition: form-data; name=\"image\"; filename*=UTF-8''%C3%A4"
            ),
            "multipart/form-data; boundary=B",
            id="filename*",
        ),
        pytest.param(
            one_part('Content-Disposition: form-data; filename="a; name=\\"x\\".png"; name="image"'),
            "multipart/form-data; boundary=B",
            id="a filename that looks like a field",
        ),
    ],
)
def test_good_forms(client: TestClient, body: bytes, kind: str) -> None:
    assert predictions(post(client, body, kind)) == predictions(send(client, GOOD))


def test_content_may_look_like_a_boundary(client: TestClient) -> None:
    image = encode(DIGITS[0]) + b"\r\n-B\r\n--C--\r\n"
    assert predictions(post(client, part(image) + b"--B--")) == predictions(send(client, GOOD))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param(part(GOOD) + b"--B", "malformed_form", id="closing boundary cut"),
        pytest.param(part(GOOD) + b"--BB--", "malformed_form", id="another boundary"),
        pytest.param(
            one_part("Content-Disposition: form-data; x=" + "y" * 5000), "malformed_form", id="long head"
        ),
        pytest.param(part(b"x", 'name="a"') * 9 + CLOSED, "malformed_form", id="many other fields"),
        pytest.param(b"--B\r\n\r\n" + GOOD + b"\r\n--B--", "malformed_form", id="no headers"),
        pytest.param(part(b"") + b"--B--", "invalid_image", id="an empty file"),
        pytest.param(part(GOOD, 'name="image"') + CLOSED, "not_a_file", id="text and file"),
    ],
)
def test_bad_forms(client: TestClient, body: bytes, code: str) -> None:
    assert_error(post(client, body), 400, code)


@pytest.mark.parametrize("boundary", ["", '""', "B" * 2000])
def test_bad_boundaries(client: TestClient, boundary: str) -> None:
    answer = post(
        client, CLOSED.replace(b"B", boundary.encode()), f"multipart/form-data; boundary={boundary}"
    )
    assert_error(answer, 400, "malformed_form")
