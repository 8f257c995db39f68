"""int8 files are served like others, after the same check."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ducat_serve.cpu
from ducat_serve.cpu import overflow_warning
from ducat_serve.predictor import Predictor
from tests.support.application import ADMIN, bearer, metrics, serving_path
from tests.support.http_client import encode, predictions, send
from tests.support.model_repository import place


@pytest.mark.integration
def test_an_int8_model_is_served(int8_folder: Path) -> None:
    file = int8_folder / "model-int8.onnx"
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    with serving_path(file) as (client, _):
        assert client.get("/v1/model").json()["spec"]["precision"] == "int8"
        [found] = predictions(send(client, encode(image)))
    assert found["class_id"] == int(Predictor(file, "cpu")(image[None]).label[0])


@pytest.mark.integration
def test_which_of_two_files_of_the_same_weights_answered_is_told(int8_folder: Path, tmp_path: Path) -> None:
    files = {"1": int8_folder / "model.onnx", "2": int8_folder / "model-int8.onnx"}
    for version, file in files.items():
        place(file, tmp_path / "models", "digits", version)
    image = encode(np.zeros((8, 8, 3), np.uint8))
    said, audit = [], tmp_path / "audit.jsonl"
    with serving_path(tmp_path / "models", audit_log=audit) as (client, _):
        for version in files:
            query = f"?model=digits&version={version}"
            answer = client.post(f"/v1/predict{query}", content=image, headers={"content-type": "image/png"})
            summary, details = answer.json()["model"], client.get(f"/v1/model{query}").json()
            assert summary["function_digest"] == details["function_digest"]
            said.append((summary["function_digest"], summary["precision"]))
        labels = {key[1:] for key in metrics(client, **bearer(ADMIN)) if key[0] == "ducat_model_info"}
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [(line["function_digest"], line["precision"]) for line in lines] == said
    assert said == [
        (Predictor(file, "cpu").function_digest, precision)
        for file, precision in zip(files.values(), ("float32", "int8"), strict=True)
    ]
    assert said[0][0] != said[1][0]
    assert len({line["weights_digest"] for line in lines}) == 1
    assert {(function, precision) for _, function, _, precision, *_ in labels} == {
        (function[:12], precision) for function, precision in said
    }


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
