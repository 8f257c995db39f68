"""int8 files are served like others, after the same check."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ducat_serve.cpu
from ducat_serve.cpu import overflow_warning
from ducat_serve.predictor import Predictor
from tests.support.application import serving_path
from tests.support.http_client import encode, predictions, send


@pytest.mark.integration
def test_an_int8_model_is_served(int8_folder: Path) -> None:
    file = int8_folder / "model-int8.onnx"
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    with serving_path(file) as (client, _):
        assert client.get("/v1/model").json()["spec"]["precision"] == "int8"
        [found] = predictions(send(client, encode(image)))
    assert found["class_id"] == int(Predictor(file, "cpu")(image[None]).label[0])


def test_a_cpu_without_the_instructions_is_told(int8_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Predictor(int8_folder / "model-int8.onnx", "cpu").spec
    record = spec.quantisation
    assert record is not None
    full = spec.model_copy(update={"quantisation": record.model_copy(update={"reduced_range": False})})
    monkeypatch.setattr(ducat_serve.cpu, "has_int8_dot_product", lambda: False)
    assert "sums may overflow" in (overflow_warning(full) or "")
    reduced = record.model_copy(update={"reduced_range": True})
    assert overflow_warning(spec.model_copy(update={"quantisation": reduced})) is None
    monkeypatch.setattr(ducat_serve.cpu, "has_int8_dot_product", lambda: True)
    assert overflow_warning(full) is None
