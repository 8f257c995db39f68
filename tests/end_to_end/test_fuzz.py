"""Thousands of mutated requests: each gets an answer that blames the client, and none harms the next one."""

from __future__ import annotations

import base64
import json
import random
from collections import Counter
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.support.http_client import DIGITS, GOOD, MULTIPART, assert_error, encode, part, predictions, send
from tests.support.request_bodies import binary, binary_tensor, npy, tensor

REQUESTS = 2_000
HEADER = "Inference-Header-Content-Length"


def good_requests() -> list[tuple[str, bytes, dict[str, str]]]:
    """One of each kind: path, body, headers."""
    images = [encode(DIGITS[0], kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")]
    v2 = binary(binary_tensor(1, 192), bytes(192))
    text = json.dumps({"images": [base64.b64encode(GOOD).decode()]}).encode()
    return [
        *(("/v1/predict", part(image) + b"--B--\r\n", dict(MULTIPART)) for image in images),
        *(("/v1/predict", image, {"content-type": "image/png"}) for image in images),
        ("/v1/predict", text, {"content-type": "application/json"}),
        ("/v1/predict", npy(DIGITS[:2]), {"content-type": "application/x-npy"}),
        ("/v2/models/model/infer", json.dumps(tensor([0] * 192)).encode(), {}),
        (v2["url"], v2["content"], v2["headers"]),
    ]


def mutated(body: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut out, doubled, set to extremes, or numbers made huge."""
    data = bytearray(body)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        if not data:
            break
        at = chance.randrange(len(data))
        length = chance.randrange(1, 40)
        match chance.randrange(6):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length] * chance.randrange(1, 4)
            case 3:
                data[at : at + 4] = chance.choice((b"\x00" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff"))
            case 4:
                data[at : at + 1] = str(chance.choice((-1, 2**31, 2**63, 10**30))).encode()
            case 5:
                del data[at:]
    return bytes(data)


def mutated_json(document: Any, chance: random.Random) -> bytes:
    """A value of another type at a random place; what is nested deeper is as likely as what is not."""
    place = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = chance.choice(keys)
        if isinstance(place[key], dict | list) and chance.random() < 0.6:
            place = place[key]
            continue
        place[key] = chance.choice(
            ([], {}, [[]], None, True, False, 0, -1, 10**30, 1.5, "", "\ud83d", [None] * 3)
        )
        break
    return json.dumps(document).encode()


def mutated_npy(array: bytes, chance: random.Random) -> bytes:
    """Another shape in the header, of equal length."""
    sizes = [str(chance.choice((0, 1, True, -1, 8, 10**9))) for _ in range(chance.randrange(6))]
    header = f"{{'descr': '|u1', 'fortran_order': {chance.choice((True, False))}, 'shape': ({', '.join(sizes)},), }}"
    return array[:10] + header.encode().ljust(117)[:117] + b"\n" + array[128:]


def mutated_headers(headers: dict[str, str], chance: random.Random) -> dict[str, str]:
    changed = dict(headers)
    if chance.random() < 0.1:
        changed["content-type"] = chance.choice(
            (
                "",
                "image/",
                "multipart/form-data",
                "multipart/form-data; boundary=",
                "application/json",
                "\t;;;",
                "x" * 5000,
            )
        )
    if HEADER in changed and chance.random() < 0.3:
        changed[HEADER] = chance.choice(
            ("0", "1", "-1", "10", "99999999", "9" * 400, "0" * 4301, "0x10", " 7", "1e3", "\u0667")
        )
    return changed


@pytest.mark.slow
def test_mutated_requests(client: TestClient) -> None:
    chance, seen = random.Random(0), Counter[Any]()
    kinds = good_requests()
    for path, body, headers in kinds:
        assert client.post(path, content=body, headers=headers).status_code == 200
    for number in range(REQUESTS):
        path, body, headers = chance.choice(kinds)
        if body.startswith(b"{") and HEADER not in headers and chance.random() < 0.5:
            content = mutated_json(json.loads(body), chance)
        elif body.startswith(b"\x93NUMPY") and chance.random() < 0.5:
            content = mutated_npy(body, chance)
        else:
            content = mutated(body, chance)
        changed = mutated_headers(headers, chance)
        encoded: Any = {name: value.encode("utf-8") for name, value in changed.items()}
        response = client.post(path, content=content, headers=encoded)
        seen[response.status_code] += 1
        assert response.status_code in (200, 400, 413, 415), (
            number,
            path,
            content[:80],
            changed,
            response.text,
        )
        if response.status_code != 200:
            body = response.json()
            code = body["code"] if path.startswith("/v2") else body["error"]["code"]
            assert_error(response, response.status_code, code)
        if number % 500 == 0:
            assert len(predictions(send(client, GOOD))) == 1
    assert seen[400] > REQUESTS / 3
    assert seen[200] > REQUESTS / 100, "some mutations leave an image an image"
    assert predictions(send(client, GOOD)) == predictions(send(client, GOOD))
