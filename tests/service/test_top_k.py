"""`top_k`: how many classes each prediction lists."""

from __future__ import annotations

import base64
import copy
import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from ducat_serve.predictor import Predictions, Predictor
from service.api import open_inference
from tests.support.application import FakeModel, serve
from tests.support.http_client import GOOD, assert_error, is_ready, predictions, until
from tests.support.request_bodies import tensor

FILE = {"image": ("a.png", GOOD, "image/png")}


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 5),
        ("?top_k=1", 1),
        ("?top_k=007", 7),
        ("?top_k=11", 10),  # all that there are
        (f"?top_k={'9' * 5000}", 10),
        (f"?top_k={'0' * 5000}1", 1),
    ],
)
def test_as_many_as_were_asked_for(client: TestClient, query: str, count: int) -> None:
    [answer] = predictions(client.post(f"/v1/predict{query}", files=FILE))
    assert len(answer["top_k"]) == count
    confidences = [choice["confidence"] for choice in answer["top_k"]]
    assert confidences == sorted(confidences, reverse=True)


@pytest.mark.parametrize("asked", ["101", "999999"])
def test_of_many_classes_a_hundred_are_listed(predictor: Predictor, asked: str) -> None:
    many = copy.copy(predictor)
    many.spec = predictor.spec.model_copy(update={"num_classes": 300, "labels": tuple(map(str, range(300)))})
    many.reference = None

    class Many(FakeModel):
        def infer(self, images: NDArray[np.uint8]) -> Predictions:
            logits = np.zeros((len(images), 300), np.float32)
            return Predictions(logits, logits.argmax(axis=1), logits[:, 0])

    with serve(Many(many)) as client:
        until(lambda: is_ready(client))
        [answer] = predictions(client.post(f"/v1/predict?top_k={asked}", files=FILE))
    assert len(answer["top_k"]) == 100


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


def test_answers_are_not_written_on_the_event_loop(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large one would hold up every other client meanwhile."""
    writers: list[str] = []

    def watched(name: str, write: Any) -> None:
        def writing(*arguments: Any) -> Any:
            writers.append(threading.current_thread().name)
            return write(*arguments)

        monkeypatch.setattr(name, writing)

    watched("ducat_serve.predictor.Predictions.to_json", Predictions.to_json)
    watched("service.api.open_inference.write_response", open_inference.write_response)
    predictions(client.post("/v1/predict", files=FILE))
    assert client.post("/v2/models/model/infer", json=tensor([0] * 192)).status_code == 200
    assert [name.partition("_")[0] for name in writers] == ["documents", "documents"]
