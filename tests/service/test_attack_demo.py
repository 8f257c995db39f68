"""The search that a server makes on its own model: what it finds, its bounds, and that predictions go first."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from ducat_serve.predictor import Predictions, Predictor
from service.api import attack_demo
from service.attack_demo.square import search
from service.models.batcher import Batcher
from tests.support.application import ALICE, bearer, serving
from tests.support.http_client import DIGITS, GOOD, WAIT, assert_error, encode, predictions, send

FILE = {"image": ("a.png", GOOD, "image/png")}


def lines(response: Any) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.headers["x-accel-buffering"] == "no", "a proxy must pass each line on"
    return [json.loads(line) for line in response.text.splitlines() if line]


def pixels(text: str) -> NDArray[np.int16]:
    return np.frombuffer(base64.b64decode(text), np.uint8).astype(np.int16)


def test_what_it_finds_is_what_the_model_says(predictor: Predictor) -> None:
    with serving(predictor, attack_demo=True) as client:
        found = lines(client.post("/v1/attack", files=FILE))
    last = found[-1]
    assert (pixels(last["original"]) == DIGITS[0].ravel()).all()
    attacked = pixels(last["attacked"])
    assert np.abs(attacked - pixels(last["original"])).max() <= 25, "0.1 of 255"
    answer = predictor(attacked.astype(np.uint8).reshape(DIGITS[:1].shape))
    assert predictor.spec.labels[int(answer.label[0])] == last["label"]
    assert answer.confidence[0] == pytest.approx(last["confidence"], rel=1e-4)
    assert (last["stopped"] == "fooled") == (last["label"] != last["before"]["label"])
    counts = [line["queries"] for line in found]
    assert counts == sorted(counts)
    assert counts[-1] <= attack_demo.MOST_QUERIES


def test_every_question_is_charged_and_a_spent_budget_ends_it(predictor: Predictor) -> None:
    with serving(predictor, attack_demo=True, api_keys=f"alice:{ALICE}", daily_budget=15) as client:
        assert_error(client.post("/v1/attack", files=FILE), 401, "unauthorized")
        last = lines(client.post("/v1/attack", files=FILE, headers=bearer(ALICE)))[-1]
        assert last["stopped"] == "budget_spent"
        assert last["queries"] == 11, "one, and ten that were paid for before they were asked"


def test_who_may_ask_little_at_once_still_asks(predictor: Predictor) -> None:
    with serving(predictor, attack_demo=True, rate=5, max_images=1) as client:
        last = lines(client.post("/v1/attack", files=FILE))[-1]
    assert last["stopped"] in ("rate_limited", "fooled")
    assert last["queries"] >= 5, "the five that a second allows"


def test_a_budget_of_one_image_buys_one_answer(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    infer = Predictor.__call__

    def counted(self: Predictor, images: NDArray[np.uint8]) -> Predictions:
        asked.append(len(images))
        return infer(self, images)

    monkeypatch.setattr(Predictor, "__call__", counted)
    with serving(predictor, attack_demo=True, daily_budget=1) as client:
        [last] = lines(client.post("/v1/attack", files=FILE))
    assert (last["queries"], last["stopped"], asked) == (1, "budget_spent", [1])


def test_the_first_answer_is_recorded(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with serving(predictor, attack_demo=True, audit_log=path) as client:
        last = lines(client.post("/v1/attack", files=FILE))[-1]
    [recorded] = map(json.loads, path.read_text().splitlines())
    assert recorded["image_sha256"] == hashlib.sha256(GOOD).hexdigest()
    assert recorded["label"] == last["before"]["label"]


def test_a_search_that_never_gets_to_ask_ends_in_time(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attack_demo, "MOST_SECONDS", 0.3)
    with serving(predictor, attack_demo=True) as client:
        # Predictions are always waiting, but not the first answer of the search.
        monkeypatch.setattr(Batcher, "rows", property(lambda _: 1))
        [last] = lines(client.post("/v1/attack", files=FILE))
    assert (last["queries"], last["stopped"]) == (1, "time")


def test_one_image_and_not_more_searches_than_may_wait(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(predictor, attack_demo=True) as client:
        two = [("image", ("a.png", GOOD, "image/png"))] * 2
        for _ in range(5):  # a refused one gives its place back
            assert_error(client.post("/v1/attack", files=two), 400, "one_image")
        monkeypatch.setattr(attack_demo, "MOST_QUERIES", 5)
        for _ in range(5):  # and so does one that is over
            assert lines(client.post("/v1/attack", files=FILE))[-1]["queries"] <= 5
        monkeypatch.setattr(attack_demo, "_MOST_SEARCHES", 0)
        busy = client.post("/v1/attack", files=FILE)
        assert_error(busy, 429, "attack_busy")
        assert busy.headers["retry-after"]
        predictions(send(client, GOOD))


def test_it_is_off_unless_asked_for(client: TestClient) -> None:
    assert_error(client.post("/v1/attack", files=FILE), 404, "not_found")
    assert client.get("/v1/examples").json() == {"examples": [], "threat_model": None, "attack_demo": None}
    assert "/v1/attack" not in client.get("/openapi.json").json()["paths"]


def test_a_question_waits_while_a_prediction_does(predictor: Predictor) -> None:
    import threading

    class Busy:
        rows = 1

    class Loaded:
        batcher = Busy()
        asked = threading.Event()

        def predictor(self, images: NDArray[np.uint8]) -> Predictions:
            self.asked.set()
            return predictor(images)

    loaded, stopped = Loaded(), threading.Event()
    thread = threading.Thread(target=attack_demo._asking(loaded, stopped, math.inf), args=(DIGITS[:1],))  # type: ignore[arg-type]
    thread.start()
    assert not loaded.asked.wait(0.2)
    Busy.rows = 0
    assert loaded.asked.wait(30)
    thread.join()


def test_the_search_keeps_what_is_better_and_stops_when_it_succeeds() -> None:
    """On a model that reads the mean: bright is class 1."""

    def ask(images: NDArray[np.uint8]) -> Predictions:
        mean = images.mean(axis=(1, 2, 3)).astype(np.float32) / 255
        logits = np.stack([0.55 - mean, mean - 0.45], axis=1)
        return Predictions(logits, logits.argmax(axis=1), np.zeros(len(images), np.float32))

    image = np.full((8, 8, 3), 120, np.uint8)
    steps = list(search(image, ask(image[None]), 20, ask, 500, seed=0))
    assert steps[0].image is image
    assert steps[-1].fooled
    assert len(steps) < 500
    means = [step.image.mean() for step in steps[1:]]
    assert means == sorted(means)
    hopeless = list(search(image, ask(image[None]), 1, ask, 50, seed=0))
    assert len(hopeless) == 50
    assert not hopeless[-1].fooled
    assert encode(hopeless[-1].image)


def test_who_waits_for_a_turn_is_told_that_the_server_is_there(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attack_demo, "_SIGN_OF_LIFE_SECONDS", 0.1)
    monkeypatch.setattr(attack_demo, "MOST_SECONDS", 1.0)
    with serving(predictor, attack_demo=True) as client, ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(Batcher, "rows", property(lambda _: 1))  # each takes all of its time
        answers = [pool.submit(client.post, "/v1/attack", files=FILE) for _ in range(2)]
        texts = [answer.result(WAIT).text for answer in answers]
    assert sum(text.startswith("\n\n") for text in texts) == 1, "the second waits for a second"
