"""Inference on a device, alone and in the service: the CPU's answers, and the device really used."""

from __future__ import annotations

import numpy as np
import pytest

from ducat_serve.bundled import model_path
from ducat_serve.library.device_proof.items import Check, run_checks
from ducat_serve.library.device_proof.runtime import PROVIDERS, runtime_checks
from ducat_serve.predictor import Device, Predictor, import_onnxruntime
from service.models.served import load
from service.settings import Settings
from tests.support.application import serving_path
from tests.support.http_client import GOOD, predictions, send

MODEL = model_path("digits-small", "onnx")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Device:
    name: Device = request.param
    if PROVIDERS[name] not in import_onnxruntime().get_available_providers():
        pytest.skip("the installed onnxruntime has no CUDA provider: the extra gpu instead of cpu brings it")
    return name


def test_every_batch_size_has_the_cpus_answers(device: Device) -> None:
    predictor, plain = Predictor(MODEL, device), Predictor(MODEL, "cpu", threads=1, optimised=False)
    assert predictor.provider == PROVIDERS[device]
    images = np.random.default_rng(0).integers(0, 256, (33, 8, 8, 3), dtype=np.uint8)
    for size in (1, 2, 7, 32, 33):
        found, expected = predictor(images[:size]), plain(images[:size])
        np.testing.assert_allclose(
            found.logits, expected.logits, rtol=0, atol=2e-2 * abs(expected.logits).max()
        )


@pytest.mark.integration
def test_the_service_answers_from_the_device(device: Device) -> None:
    assert load(MODEL, Settings(model=MODEL, device=device)).predictor.provider == PROVIDERS[device]
    with serving_path(MODEL, device=device) as (client, models):
        assert models.get().predictor.provider == PROVIDERS[device]
        (answer,) = predictions(send(client, GOOD))
    with serving_path(MODEL, device="cpu") as (client, _):
        (expected,) = predictions(send(client, GOOD))
    assert answer["class_id"] == expected["class_id"]
    assert answer["confidence"] == pytest.approx(expected["confidence"], abs=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("check", runtime_checks("cuda", repeats=2), ids=lambda check: check.name)
def test_the_checks_of_the_doctor(check: Check) -> None:
    if PROVIDERS["cuda"] not in import_onnxruntime().get_available_providers():
        pytest.skip("the installed onnxruntime has no CUDA provider: the extra gpu instead of cpu brings it")
    (item,) = run_checks([check])
    assert item.state in ("passed", "skipped"), item.reason
