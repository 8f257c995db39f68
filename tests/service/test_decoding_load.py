"""More images than the decoders get done: who is refused, who is let go, and what becomes of an image nobody awaits."""

from __future__ import annotations

import asyncio
import io
import math
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import pytest
from starlette.testclient import TestClient

from ducat_serve.images import ImageError
from ducat_serve.predictor import Predictor
from ducat_serve.spec import ModelSpec
from service.application import create_app
from service.decoding.decoders import Decoders, Turns
from tests.support.application import FakeModel, metrics
from tests.support.decoders import SILENT, SLOW
from tests.support.fault_server import UPLOAD, head
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
from tests.support.server_thread import listening

pytestmark = pytest.mark.integration

MAX_PIXELS = 1_000_000


@pytest.fixture(scope="module")
def spec(predictor: Predictor) -> ModelSpec:
    return predictor.spec


def run(
    scenario: Callable[[Decoders], Coroutine[Any, Any, None]], command: Sequence[str] = SLOW, count: int = 1
) -> None:
    async def whole() -> None:
        decoders = Decoders(count, command)
        try:
            async with asyncio.timeout(WAIT):
                await decoders.start()
                await scenario(decoders)
        finally:
            await decoders.stop()

    asyncio.run(whole())


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, DIGITS[:1])
    return buffer.getvalue()


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def test_an_image_that_nobody_awaits_any_more_costs_no_process(spec: ModelSpec) -> None:
    """A process takes longer to start than most images take to decode."""

    async def scenario(decoders: Decoders) -> None:
        before = children()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await decoders.decode(GOOD, spec, MAX_PIXELS)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await decoders.decode(b"no image", spec, MAX_PIXELS)
        await decoders.decode(GOOD, spec, MAX_PIXELS)
        assert children() == before

    run(scenario)


def test_what_comes_too_late_leaves_its_turn_to_others(spec: ModelSpec) -> None:
    async def scenario(decoders: Decoders) -> None:
        loop = asyncio.get_running_loop()
        first = asyncio.create_task(decoders.decode_all([GOOD], spec, MAX_PIXELS, math.inf, Turns()))
        await asyncio.sleep(0)
        decoders._seconds_per_image = 2 * WAIT
        late, alone = (
            asyncio.create_task(decoders.decode_all([GOOD], spec, MAX_PIXELS, loop.time() + WAIT, Turns()))
            for _ in range(2)
        )
        await first
        with pytest.raises(TimeoutError):
            await late
        assert len(await alone) == 1, "an estimate can be wrong, so the last one is tried"

    run(scenario)


def test_the_estimate_counts_one_image_of_every_other_request(spec: ModelSpec) -> None:
    async def scenario(decoders: Decoders) -> None:
        assert decoders.seconds_for(100) == 0  # nothing is known yet
        decoders._seconds_per_image = 1
        assert decoders.seconds_for(1) == 1
        assert decoders.seconds_for(4) == 4  # one at a time
        waiting = [
            asyncio.create_task(decoders.decode_all([GOOD] * count, spec, MAX_PIXELS, math.inf, Turns()))
            for count in (1, 1, 1, 8)
        ]
        await asyncio.sleep(0)
        assert decoders.waiting == 11
        assert decoders.seconds_for(1) == 5 / 2
        assert decoders.seconds_for(4) == (3 + 4 + 4) / 2
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert decoders.waiting == 0

    run(scenario, SILENT, count=2)


def test_the_image_that_does_not_decode_is_named_where_there_are_several(spec: ModelSpec) -> None:
    async def scenario(decoders: Decoders) -> None:
        with pytest.raises(ImageError, match=r"^Image 2: ") as refused:
            await decoders.decode_all([GOOD, b"no image"], spec, MAX_PIXELS, math.inf, Turns())
        assert refused.value.code == "invalid_image"
        with pytest.raises(ImageError, match=r"^(?!Image 1)"):
            await decoders.decode_all([b"no image"], spec, MAX_PIXELS, math.inf, Turns())

    run(scenario)


@contextmanager
def serving_slowly(predictor: Predictor) -> Iterator[TestClient]:
    """One decoder that takes long for every image, and is expected to take far longer."""
    app = create_app(FakeModel(predictor, deadline=WAIT))
    decoders = app.state.admission.decoders = Decoders(1, SLOW)
    with TestClient(app) as client:
        until(lambda: is_ready(client))
        decoders._seconds_per_image = 2.0 * WAIT
        yield client


def test_images_that_would_wait_beyond_the_deadline_are_refused_at_once(predictor: Predictor) -> None:
    with serving_slowly(predictor) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(send, client, GOOD)
        until(lambda: metrics(client)[("ducat_decode_waiting",)] == 1)
        refused = send(client, GOOD)
        assert_error(refused, 429, "overloaded")
        assert int(refused.headers["retry-after"]) >= WAIT
        array = client.post("/v1/predict", content=npy(), headers={"content-type": "application/x-npy"})
        assert len(predictions(array)) == 1, "it needs no decoder"
        assert len(predictions(first.result(WAIT))) == 1
        assert len(predictions(send(client, GOOD))) == 1, "where nobody waits there is room in any case"


def test_a_free_decoder_is_there_for_everybody(predictor: Predictor) -> None:
    """However long images are expected to take: one that keeps a process busy keeps nobody out."""
    app = create_app(FakeModel(predictor, deadline=WAIT))
    decoders = app.state.admission.decoders = Decoders(2, SLOW)
    with TestClient(app) as client, ThreadPoolExecutor(1) as pool:
        until(lambda: is_ready(client))
        decoders._seconds_per_image = 2.0 * WAIT
        first = pool.submit(send, client, *[GOOD] * 4)
        until(lambda: metrics(client)[("ducat_decode_waiting",)] > 0)
        assert len(predictions(send(client, GOOD))) == 1
        assert len(predictions(first.result(WAIT))) == 4


def test_an_image_that_a_process_is_killed_for_is_not_in_the_estimate(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.decoding.decoders.STUCK_SECONDS", 0.2)

    async def scenario(decoders: Decoders) -> None:
        decoders._seconds_per_image = 0.001
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await decoders.decode(GOOD, spec, MAX_PIXELS)
        while decoders.are_busy:
            await asyncio.sleep(0.01)
        assert decoders.seconds_for(1) == 0.001

    run(scenario, SILENT)


def test_images_that_took_all_of_the_time_themselves_are_paid_for(predictor: Predictor) -> None:
    """A 5xx would call somebody out of bed, and cost whoever sends them nothing."""
    app = create_app(FakeModel(predictor, deadline=2.0, daily_budget=50, max_images=50))
    decoders = app.state.admission.decoders = Decoders(1, SLOW)
    with TestClient(app) as client:
        until(lambda: is_ready(client))
        assert client.portal is not None
        client.portal.call(decoders.start)
        refused = send(client, *[GOOD] * 50)
        assert_error(refused, 413, "too_many_images")
        assert "send fewer or smaller ones in a request" in refused.text
        assert_error(send(client, GOOD), 429, "budget_spent")


def test_images_that_waited_or_whose_decoder_hung_are_not_paid_for(predictor: Predictor) -> None:
    app = create_app(FakeModel(predictor, deadline=1.0, daily_budget=2, max_images=2))
    decoders = app.state.admission.decoders = Decoders(1, SILENT)
    with TestClient(app) as client, ThreadPoolExecutor(1) as pool:
        until(lambda: is_ready(client))
        assert client.portal is not None
        client.portal.call(decoders.start)
        first = pool.submit(send, client, GOOD)
        until(lambda: decoders.are_busy)
        assert_error(send(client, GOOD), 504, "deadline_exceeded")
        assert_error(
            first.result(WAIT), 504, "deadline_exceeded"
        )  # its decoder hung, for no fault of its image
        for status in (200, 200, 429):  # both are left, for arrays, which need no decoder
            array = client.post("/v1/predict", content=npy(), headers={"content-type": "application/x-npy"})
            assert array.status_code == status


def test_clients_that_left_are_not_waited_for(predictor: Predictor) -> None:
    models = FakeModel(predictor, deadline=WAIT)
    app = create_app(models)
    decoders = app.state.admission.decoders = Decoders(1, SILENT)
    request = head("/v1/predict", len(UPLOAD)) + UPLOAD
    with listening(app, models) as port:
        address = ("127.0.0.1", port)
        with socket.create_connection(address) as first:
            first.sendall(request)
            until(lambda: decoders.waiting == 1)
            others = [socket.create_connection(address) for _ in range(3)]
            for other in others:
                other.sendall(request)
            until(lambda: decoders.waiting == 4)
            for other in others:
                other.close()
            until(lambda: decoders.waiting == 1)
            assert b'ducat_rejects_total{reason="client_disconnected"} 3.0' in models.metrics.text()
            for child in children():
                os.kill(child, signal.SIGKILL)
            assert first.recv(100).startswith(b"HTTP/1.1 "), "its decoder ended"


def test_as_many_decoders_as_are_asked_for(predictor: Predictor) -> None:
    app = create_app(FakeModel(predictor, decoders=3))
    assert len(app.state.admission.decoders._workers) == 3
