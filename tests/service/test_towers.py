"""Serving two towers: every answer says whose it is, and the metrics count them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ducat_serve.predictor import Predictor
from tests.support.application import ADMIN, bearer, metrics, serving_path
from tests.support.http_client import encode, predictions, send
from training.data import load_dataset

pytestmark = pytest.mark.integration


@pytest.fixture
def model(towers_folder: Path) -> Path:
    return towers_folder / "model.onnx"


def test_answers_say_whose_they_are_and_are_counted(model: Path) -> None:
    images = load_dataset("digits").test.images[:40]
    answer = Predictor(model, "cpu", 1)(images)
    expected = ["robust" if mass > 0.5 else "standard" for mass in answer.dummy_mass]
    assert set(expected) == {"robust", "standard"}
    with serving_path(model) as (client, _):
        found = [predictions(send(client, encode(image)))[0] for image in images]
        assert [one["answered_by"] for one in found] == expected
        assert [one["class_id"] for one in found] == answer.label.tolist()
        counted = metrics(client, **bearer(ADMIN))
        described = client.get("/v1/model").json()["spec"]
        openapi = client.get("/openapi.json").json()
    for tower in ("robust", "standard"):
        [count] = [v for key, v in counted.items() if key[0] == "ducat_tower_answers_total" and tower in key]
        assert count == expected.count(tower)
    assert described["fold"]["threshold"] == 0.3
    assert len(described["towers"]) == 2
    schema = openapi["components"]["schemas"]["Prediction"]["properties"]["answered_by"]
    assert schema["enum"] == ["standard", "robust"]


def test_models_without_towers_say_nothing_of_them(onnx_model: Path) -> None:
    with serving_path(onnx_model) as (client, _):
        [found] = predictions(send(client, encode(np.zeros((8, 8, 3), np.uint8))))
        assert "answered_by" not in found
        assert not [key for key in metrics(client, **bearer(ADMIN)) if key[0] == "ducat_tower_answers_total"]
