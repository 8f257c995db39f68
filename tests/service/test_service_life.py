"""A model that loads, blocks or fails: readiness, overload, deadlines, shutting down."""

from __future__ import annotations

import asyncio
import importlib
import logging
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from ducat_serve.errors import UsageError
from ducat_serve.predictor import Predictions, Predictor
from service.application import create_app
from service.decoding.decoders import Decoders
from service.models.batcher import Batcher
from service.models.registry import Models
from service.settings import Settings
from tests.support.application import FakeModel, metrics, serve
from tests.support.decoders import COMPUTING, SILENT
from tests.support.http_client import (
    DIGITS,
    GOOD,
    WAIT,
    assert_error,
    is_ready,
    predictions,
    send,
    until,
)
from tests.support.request_bodies import tensor


def test_before_the_model_is_loaded(onnx_model: Path) -> None:
    class Loading(Models):
        async def start(self) -> None:
            await asyncio.Event().wait()

    with serve(Loading(Settings(model=onnx_model))) as client:
        for response in (
            send(client, GOOD),
            client.get("/v1/model"),
            client.get("/v2/health/ready"),
            client.get("/readyz"),
            client.post("/v2/models/model/infer", content=b"{}"),
        ):
            assert_error(response, 503, "not_ready")
            assert int(response.headers["retry-after"]) >= 1
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/").status_code == 200


@pytest.mark.filterwarnings("ignore")  # BentoML's own imports
def test_readyz_of_bentoml_waits_for_the_model(onnx_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUCAT_SERVE_MODEL", str(onnx_model))
    app = importlib.import_module("service.app")
    service = app.DucatService.inner()
    assert not service.__is_ready__()
    asyncio.run(app.models.start())
    assert service.__is_ready__()
    assert service.__is_alive__()
    monkeypatch.setattr(Batcher, "stalled_seconds", 60.0)
    assert not service.__is_ready__()
    assert not service.__is_alive__()
    asyncio.run(app.models.stop())


def test_a_model_that_does_not_load_ends_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    signals: list[int] = []
    monkeypatch.setattr("os.kill", lambda _pid, number: signals.append(number))
    with serve(Models(Settings(model=tmp_path / "missing.onnx"))) as client:
        until(lambda: bool(signals))
        assert_error(send(client, GOOD), 503, "not_ready")
    assert signals == [signal.SIGTERM]
    assert "missing.onnx" in caplog.text


def test_overload(predictor: Predictor) -> None:
    model = FakeModel(predictor, max_queue=1, max_images=1)
    model.gate.clear()
    with serve(model) as client, ThreadPoolExecutor(1) as pool:
        until(lambda: is_ready(client))
        first = pool.submit(send, client, GOOD)
        assert model.started.wait(WAIT)
        response = send(client, GOOD)
        model.gate.set()
        assert_error(response, 429, "overloaded")
        assert int(response.headers["retry-after"]) >= 1
        assert len(predictions(first.result(WAIT))) == 1
        assert len(predictions(send(client, GOOD))) == 1


def test_images_of_all_requests_together_are_bounded_before_they_are_decoded(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, decoded = threading.Event(), []

    decode = Decoders.decode

    async def hang(decoders: Decoders, *image: Any) -> NDArray[np.uint8]:
        decoded.append(1)
        while not gate.is_set():
            await asyncio.sleep(0.01)
        return await decode(decoders, *image)

    monkeypatch.setattr(Decoders, "decode", hang)
    model = FakeModel(predictor, max_queue=10, max_images=8)
    app = create_app(model)
    with TestClient(app) as client, ThreadPoolExecutor(1) as pool:
        until(lambda: is_ready(client))
        first = pool.submit(send, client, *[GOOD] * 8)
        until(lambda: bool(decoded))
        for _ in range(3):
            assert_error(send(client, *[GOOD] * 3), 429, "overloaded")
        assert len(decoded) == 1, "nothing of what was refused"
        gate.set()
        assert len(predictions(first.result(WAIT))) == 8
        assert app.state.admission.images == 0
        assert len(predictions(send(client, *[GOOD] * 3))) == 3


def test_deadline(predictor: Predictor) -> None:
    model = FakeModel(predictor, deadline=0.05)
    model.gate.clear()
    with serve(model) as client:
        until(lambda: is_ready(client))
        response = send(client, GOOD)
        model.gate.set()
        assert_error(response, 504, "deadline_exceeded")


def test_deadline_covers_decoding_and_decoding_is_bounded(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoders that hang: nobody waits for longer, each of two processes is killed, and nothing piles up."""
    monkeypatch.setattr("service.decoding.decoders.STUCK_SECONDS", 0.1)
    model = FakeModel(predictor, deadline=0.5)
    app = create_app(model)
    app.state.admission.decoders = Decoders(2, SILENT)
    with TestClient(app) as client, ThreadPoolExecutor(8) as pool:
        until(lambda: is_ready(client))
        assert client.portal is not None
        client.portal.call(app.state.admission.decoders.start)
        stuck = {child.pid for child in psutil.Process().children()}
        assert len(stuck) == 2
        responses = list(pool.map(lambda _: send(client, GOOD), range(8)))
        for response in responses:
            assert_error(response, 504, "deadline_exceeded")
        until(lambda: stuck.isdisjoint(child.pid for child in psutil.Process().children()))
        assert len(psutil.Process().children()) <= 2
        assert (app.state.admission.requests, app.state.admission.images) == (0, 0)


def test_images_that_take_long_leave_the_server_ready(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests could otherwise take a replica out of service, and a few all of them."""
    monkeypatch.setattr("service.decoding.decoders.STUCK_SECONDS", 0.0)
    app = create_app(FakeModel(predictor, deadline=WAIT))
    decoders = app.state.admission.decoders = Decoders(2, SILENT)
    with TestClient(app) as client, ThreadPoolExecutor(2) as pool:
        until(lambda: is_ready(client))
        waiting = [pool.submit(send, client, GOOD) for _ in range(2)]
        until(lambda: sum(worker.busy_seconds > 0 for worker in decoders._workers) == 2)
        for path in ("/v2/health/ready", "/readyz"):
            assert client.get(path).status_code == 200
        for child in psutil.Process().children():
            child.kill()
        for one in waiting:
            assert_error(one.result(WAIT), 400, "invalid_image")


def test_an_image_that_takes_too_much_cpu_time_is_more_than_the_server_takes(predictor: Predictor) -> None:
    app = create_app(FakeModel(predictor, deadline=WAIT))
    app.state.admission.decoders = Decoders(1, COMPUTING)
    with TestClient(app) as client:
        until(lambda: is_ready(client))
        assert_error(send(client, GOOD), 413, "image_too_slow")


def test_not_ready_while_no_decoder_starts(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(FakeModel(predictor))
    with TestClient(app) as client:
        until(lambda: is_ready(client))
        assert app.state.admission.is_ready
        monkeypatch.setattr(Decoders, "do_not_start", True)
        assert not app.state.admission.is_ready  # what /readyz asks
        for path in ("/v2/health/ready", "/readyz"):
            assert_error(client.get(path), 503, "not_ready")
        assert client.get("/v2/health/live").status_code == client.get("/livez").status_code == 200


HEALTH = ("/livez", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2/models/model/ready")


def _ask_until_it_infers(client: TestClient, model: FakeModel) -> Any:
    """The last answer. A deadline may pass while a decoder starts."""
    while True:
        answer = send(client, GOOD)
        if model.started.is_set():
            return answer


def test_an_inference_that_never_ends_makes_the_server_neither_ready_nor_live(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Kubernetes starts such a server anew; one whose inference ends after all goes on."""
    monkeypatch.setattr("service.models.batcher.STALL_SECONDS", 0.1)
    model = FakeModel(predictor, deadline=0.1)
    model.gate.clear()
    with serve(model) as client:
        until(lambda: is_ready(client))
        assert_error(_ask_until_it_infers(client, model), 504, "deadline_exceeded")
        until(lambda: client.get("/livez").status_code == 503)
        for path in HEALTH:
            assert_error(client.get(path), 503, "inference_stalled")
        assert_error(send(client, GOOD), 503, "inference_stalled")
        assert caplog.text.count("Model model, version 1: an inference") == 1
        model.gate.set()
        until(lambda: is_ready(client))
        assert [client.get(path).status_code for path in HEALTH] == [200] * len(HEALTH)
        assert len(predictions(send(client, GOOD))) == 1


def test_an_inference_beyond_its_deadline_alone_says_nothing_of_the_server(predictor: Predictor) -> None:
    model = FakeModel(predictor, deadline=0.1)
    model.gate.clear()
    with serve(model) as client:
        until(lambda: is_ready(client))
        assert_error(_ask_until_it_infers(client, model), 504, "deadline_exceeded")
        assert [client.get(path).status_code for path in HEALTH] == [200] * len(HEALTH)
        model.gate.set()


def test_settings_that_could_never_serve_a_request_are_refused() -> None:
    with pytest.raises(UsageError, match="max_queue 5 is less than the 100 images"):
        Settings.from_environment({"DUCAT_SERVE_MODEL": "m.onnx", "DUCAT_SERVE_MAX_QUEUE": "5"})


def test_failing_inference(predictor: Predictor, caplog: pytest.LogCaptureFixture) -> None:
    model = FakeModel(predictor)
    with serve(model) as client:
        until(lambda: is_ready(client))
        model.failure = RuntimeError("secret /home/me/model.onnx")
        with caplog.at_level(logging.ERROR):
            response = send(client, GOOD)
        assert_error(response, 500, "internal_error")
        assert "secret" not in response.text
        assert "secret /home/me/model.onnx" in caplog.text  # the operator does learn the cause
        model.failure = None
        assert len(predictions(send(client, GOOD))) == 1


class NotANumber(FakeModel):
    """Its logits of white images are NaN or infinite."""

    def infer(self, images: NDArray[np.uint8]) -> Predictions:
        answers = super().infer(images)
        logits = answers.logits.copy()
        logits[images.min(axis=(1, 2, 3)) == 255, :2] = np.nan, np.inf
        return answers._replace(logits=logits)


def test_an_answer_that_is_no_number_is_that_of_its_request_alone(
    predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    model = NotANumber(predictor)
    names = [{"name": "logits", "parameters": {"binary_data": True}}, {"name": "label"}]
    with serve(model) as client, ThreadPoolExecutor(4) as pool:
        until(lambda: is_ready(client))

        def infer(pixel: int, **more: object) -> Any:
            return client.post("/v2/models/model/infer", json=tensor([pixel] * 192) | more)

        model.gate.clear()
        first = pool.submit(infer, 0)
        assert model.started.wait(WAIT)
        bad = [pool.submit(infer, 255), pool.submit(infer, 255, outputs=names)]
        good = pool.submit(infer, 1)
        until(lambda: model.get().batcher.rows == 4)  # the last three will be one batch
        model.gate.set()
        for answer in bad:
            assert_error(answer.result(WAIT), 500, "invalid_answer")
        assert first.result(WAIT).status_code == good.result(WAIT).status_code == 200
        seen = metrics(client)
    assert seen["ducat_confidence_count", "model", "1"] == 2
    assert 0 < seen["ducat_confidence_sum", "model", "1"] <= 2
    assert "Model model, version 1, gave an answer that is not made of numbers" in caplog.text


def test_stopping_answers_what_is_queued(predictor: Predictor) -> None:
    model = FakeModel(predictor)
    model.gate.clear()

    async def scenario() -> None:
        app = create_app(model)
        async with app.router.lifespan_context(app):
            await asyncio.sleep(0)  # lets the model start
            request = asyncio.create_task(model.get().batcher.predict(DIGITS[:1], WAIT))
            assert await asyncio.to_thread(model.started.wait, WAIT)
            asyncio.get_running_loop().call_later(0.05, model.gate.set)
        assert request.done()
        assert request.result().label.shape == (1,)

    try:
        asyncio.run(scenario())
    finally:
        model.gate.set()
