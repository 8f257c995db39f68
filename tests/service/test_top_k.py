"""`top_k`: how many classes each prediction lists."""

from __future__ import annotations

import base64

import pytest
from starlette.testclient import TestClient

from tests.support.http_client import GOOD, assert_error, predictions

FILE = {"image": ("a.png", GOOD, "image/png")}


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 5),
        ("?top_k=1", 1),
        ("?top_k=007", 7),
        ("?top_k=11", 10),  # all that there are
        (f"?top_k={'9' * 5000}", 10),
    ],
)
def test_as_many_as_were_asked_for(client: TestClient, query: str, count: int) -> None:
    [answer] = predictions(client.post(f"/v1/predict{query}", files=FILE))
    assert len(answer["top_k"]) == count
    confidences = [choice["confidence"] for choice in answer["top_k"]]
    assert confidences == sorted(confidences, reverse=True)


@pytest.mark.parametrize("asked", ["0", "000", "-1", "x", "", "1.5", "²"])
def test_what_is_no_number_of_classes_is_told(client: TestClient, asked: str) -> None:
    response = client.post("/v1/predict", params={"top_k": asked}, files=FILE)
    assert_error(response, 400, "invalid_top_k")
    assert "from 1 on" in response.text


def test_in_the_body_it_is_not_passed_over_in_silence(client: TestClient) -> None:
    in_form = client.post("/v1/predict", files=FILE, data={"top_k": "3"})
    in_json = client.post("/v1/predict", json={"images": [base64.b64encode(GOOD).decode()], "top_k": 3})
    for response in (in_form, in_json):
        assert_error(response, 400, "invalid_top_k")
        assert "top_k=3" in response.text
