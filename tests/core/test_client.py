"""`ducat_serve.Client` and `AsyncClient` against the real application, and against a server with moods."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import ducat_serve
from ducat_serve.client import AsyncClient, Client, ServerError
from ducat_serve.errors import DataError, DucatError, UsageError
from ducat_serve.predictor import Predictor
from service.application import create_app
from service.models.served import Verified
from tests.support.application import ALICE, FakeModel
from tests.support.http_client import DIGITS, GOOD, encode, until
from tests.support.server_process import free_port


@contextmanager
def serving(predictor: Predictor, **settings: Any) -> Iterator[str]:
    """The real application behind a real socket."""
    with serving_app(create_app(FakeModel(predictor, **settings))) as url:
        yield url


@contextmanager
def serving_app(app: Starlette) -> Iterator[str]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


Ask = Callable[..., Any]


def sync_ask(url: str, method: str, *arguments: Any, **options: Any) -> Any:
    with Client(url, **options) as client:
        return getattr(client, method)(*arguments)


def async_ask(url: str, method: str, *arguments: Any, **options: Any) -> Any:
    async def asked() -> Any:
        async with AsyncClient(url, **options) as client:
            return await getattr(client, method)(*arguments)

    return asyncio.run(asked())


both = pytest.mark.parametrize("ask", [sync_ask, async_ask])


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long either client would have waited, one entry for each time; nobody really waits."""
    seconds: list[float] = []

    async def sleep(pause: float) -> None:
        seconds.append(pause)

    monkeypatch.setattr("ducat_serve.client.time", SimpleNamespace(sleep=seconds.append))
    monkeypatch.setattr("ducat_serve.client.asyncio", SimpleNamespace(sleep=sleep))
    return seconds


@both
def test_a_pipe_is_no_image(ask: Ask, tmp_path: Path) -> None:
    """To open it would wait for somebody who writes into it."""
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: it is not a file"):
        ask("http://127.0.0.1:9", "predict", tmp_path / "a.png")


@both
def test_the_models_own_answers(ask: Ask, predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(DIGITS[0]))
    with serving(predictor) as url:
        answers = ask(url, "predict", tmp_path / "a.png", encode(DIGITS[1]))
        assert answers == ask(url, "predict_array", DIGITS[:2])
        assert answers == ask(url, "predict", [str(tmp_path / "a.png"), encode(DIGITS[1])])
        assert ask(url, "model")["spec"]["weights_digest"] == predictor.spec.weights_digest
        whole = ask(url, "answer", encode(DIGITS[1]), top_k=7)
        assert whole["model"]["weights_digest"] == predictor.spec.weights_digest
        assert [len(one["top_k"]) for one in whole["predictions"]] == [7]
    expected = predictor(DIGITS[:2])
    assert [answer["class_id"] for answer in answers] == expected.label.tolist()
    np.testing.assert_allclose([answer["dummy_mass"] for answer in answers], expected.dummy_mass, rtol=1e-5)


@both
def test_more_images_than_a_request_may_have_are_sent_in_several(
    ask: Ask, predictor: Predictor, tmp_path: Path
) -> None:
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for file, image in zip(files, DIGITS, strict=False):
        file.write_bytes(encode(image))
    expected = predictor(DIGITS[:5]).label.tolist()
    with serving(predictor, max_images=2) as url:
        for method, given in (("predict", files), ("predict_array", DIGITS[:5])):
            answers = ask(url, method, given, at_once=2)
            assert [answer["class_id"] for answer in answers] == expected
            with pytest.raises(ServerError, match="too_many_images"):
                ask(url, method, given)
        files[4].unlink()
        with pytest.raises(DataError, match=r"4\.png"):
            ask(url, "predict", files, at_once=2)
    with pytest.raises(UsageError, match="at_once=0"):
        ask(url, "predict", files, at_once=0)


def test_a_client_needs_no_with_and_may_be_closed_twice(predictor: Predictor) -> None:
    async def asked(url: str) -> Any:
        client = AsyncClient(url)
        await client.close()
        predictions = await client.predict(GOOD)
        await client.close()
        await client.close()
        return predictions

    with serving(predictor) as url:
        client = Client(url)
        client.close()
        predictions = client.predict(GOOD)
        client.close()
        client.close()
        assert client.predict(GOOD) == predictions, "a request opens it again"
        client.close()
        assert asyncio.run(asked(url)) == predictions


@both
def test_what_is_given_in_another_way_is_understood(ask: Ask, predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(GOOD)
    with serving(predictor) as url:
        expected = ask(url, "predict", GOOD)
        for given in (bytearray(GOOD), memoryview(GOOD), (GOOD,), tmp_path.glob("*.png")):
            assert ask(url, "predict", given) == expected


@both
@pytest.mark.parametrize(
    ("method", "given", "problem"),
    [
        ("predict", [[]], "no image"),
        ("predict", [], "no image"),
        ("answer", [[]], "no image"),
        ("predict", [Image.new("L", (8, 8))], "Image 0,.* type Image"),
        ("predict", [[GOOD, DIGITS[0]]], "Image 1,.* type ndarray"),
        ("predict", [DIGITS], "Image 0,.* type ndarray"),
        ("predict", [3], "Image 0,.* type int"),
        ("predict_array", [DIGITS[:2].astype(np.float32)], "float32"),
        ("predict_array", [np.array([None])], "object"),
        ("predict_array", [DIGITS[:0]], "empty"),
        ("predict_array", [DIGITS[0]], r"has shape \[8, 8, 3\]"),
    ],
)
def test_what_is_no_image_is_found_before_anything_is_sent(
    ask: Ask, method: str, given: list[Any], problem: str
) -> None:
    """Nobody listens at the address."""
    with pytest.raises(UsageError, match=problem) as caught:
        ask("http://127.0.0.1:9", method, *given)
    assert caught.value.next_step


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("key", ["ü" * 16, f"{ALICE}\n", f" {ALICE}", ""])
def test_a_key_that_no_header_carries_is_named(kind: Callable[..., Any], key: str) -> None:
    with pytest.raises(UsageError, match="The key is empty, or holds") as caught:
        kind("http://127.0.0.1:9", key=key)
    assert ALICE not in str(caught.value)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "url", ["127.0.0.1:3000", "localhost", "ftp://localhost", "http://localhost:port", "http://"]
)
def test_an_address_that_is_no_url_is_named(kind: Callable[..., Any], url: str) -> None:
    with pytest.raises(UsageError, match="is no URL") as caught:
        kind(url)
    assert caught.value.next_step == "give one such as http://127.0.0.1:3000"


@both
def test_refusals_are_errors_with_the_servers_words(
    ask: Ask, predictor: Predictor, pauses: list[float], tmp_path: Path
) -> None:
    with serving(predictor, api_keys=f"alice:{ALICE}", daily_budget=2) as url:
        with pytest.raises(ServerError, match="401 unauthorized"):
            ask(url, "predict", GOOD)
        with pytest.raises(ServerError) as caught:
            ask(url, "predict", b"no image", key=ALICE)
        assert (caught.value.status, caught.value.code) == (400, "invalid_image")
        assert len(ask(url, "predict", GOOD, key=ALICE)) == 1
        with pytest.raises(ServerError, match="budget_spent"):
            ask(url, "predict", GOOD, key=ALICE)
        assert pauses == [], "nobody waits for tomorrow"
        with pytest.raises(DataError, match="nowhere"):
            ask(url, "predict", tmp_path / "nowhere.png", key=ALICE)


@contextmanager
def moody(*answers: tuple[int, dict[str, str]]) -> Iterator[tuple[str, list[int]]]:
    """A server that gives these answers in order, and the statuses that it gave; 0 cuts the connection.

    The last answer stays.
    """
    given: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, headers = answers[min(len(given), len(answers) - 1)]
            given.append(status)
            if status == 0:
                self.connection.close()
                return
            body = {"predictions": [1]} if status == 200 else {"error": {"code": "busy", "message": "Busy"}}
            content = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", given
    finally:
        server.shutdown()
        server.server_close()


@both
def test_retry_after_is_honoured(ask: Ask, pauses: list[float]) -> None:
    with moody((429, {"Retry-After": "7"}), (503, {}), (200, {})) as (url, given):
        assert ask(url, "predict", GOOD) == [1]
    assert given == [429, 503, 200]
    assert pauses == [7, 1], "what the server asked for; then 0.5 s, doubled"


@both
@pytest.mark.parametrize(("asked", "expected"), [("30", [30]), ("31", [])])
def test_a_pause_that_is_too_long_is_an_error_at_once(
    ask: Ask, asked: str, expected: list[float], pauses: list[float]
) -> None:
    with moody((429, {"Retry-After": asked})) as (url, _), pytest.raises(ServerError, match="Busy"):
        ask(url, "predict", GOOD, retries=1)
    assert pauses == expected


@both
def test_a_lost_connection_is_tried_again(ask: Ask, pauses: list[float]) -> None:
    with moody((0, {}), (200, {})) as (url, given):
        assert ask(url, "predict", GOOD) == [1]
    assert given == [0, 200]
    assert pauses == [0.5]


@both
def test_an_address_that_never_answered_is_given_up_soon(ask: Ask, pauses: list[float]) -> None:
    with pytest.raises(DucatError, match="cannot be reached"):
        ask(f"http://127.0.0.1:{free_port()}", "model", retries=20)
    assert pauses == [0.5, 1, 2]


@both
def test_a_server_that_has_answered_is_waited_for(ask: Ask, pauses: list[float]) -> None:
    with moody((503, {}), *[(0, {})] * 5, (200, {})) as (url, given):
        assert ask(url, "predict", GOOD, retries=20) == [1]
    assert given == [503, 0, 0, 0, 0, 0, 200]
    assert pauses == [0.5 * 2**attempt for attempt in range(6)]


@both
def test_its_own_pauses_grow_no_longer_than_the_longest_one(ask: Ask, pauses: list[float]) -> None:
    with moody(*[(503, {})] * 5, (200, {})) as (url, given):
        assert ask(url, "predict", GOOD, retries=20, max_wait=2.0) == [1]
    assert len(given) == 6
    assert pauses == [0.5, 1, 2, 2, 2]


@both
def test_a_server_that_does_not_answer_in_time_was_reached(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DucatError, match=r"did not answer in time \(ReadTimeout\)"):
            ask(url, "predict", GOOD, timeout=0.2)


@both
@pytest.mark.parametrize(("status", "expected"), [(429, 3), (400, 1), (500, 1), (504, 1)])
def test_only_what_may_succeed_is_sent_again_and_not_for_ever(
    ask: Ask, status: int, expected: int, pauses: list[float]
) -> None:
    with moody((status, {"Retry-After": "0"})) as (url, given), pytest.raises(ServerError, match="Busy"):
        ask(url, "predict", GOOD, retries=2)
    assert len(given) == expected
    assert pauses == [0] * (expected - 1)


@both
def test_an_answer_of_another_program_is_an_error_of_the_server(ask: Ask) -> None:
    """A login page, say, with status 200."""
    bodies = ["<!doctype html>", "[1]", "{}"]
    with serving_app(Starlette(routes=[Route("/v1/predict", answer_next(bodies), methods=["POST"])])) as url:
        for problem in ("no JSON object", "no JSON object", "no predictions"):
            with pytest.raises(
                ServerError, match=f"answered with {problem}: it is not `ducat serve`"
            ) as caught:
                ask(url, "predict", GOOD)
            assert caught.value.status == 200


def answer_next(bodies: list[str]) -> Callable[[Request], Response]:
    left = iter(bodies)
    return lambda _: Response(next(left))


@both
def test_a_server_that_is_not_there(ask: Ask) -> None:
    with pytest.raises(DucatError, match="cannot be reached") as caught:
        ask(f"http://127.0.0.1:{free_port()}", "model", retries=0)
    assert "ducat serve" in str(caught.value)


def test_both_are_public_and_loaded_when_asked_for() -> None:
    assert ducat_serve.Client is Client
    assert ducat_serve.AsyncClient is AsyncClient


def test_clients_that_leave_free_their_places_and_are_never_inferred(predictor: Predictor) -> None:
    model = FakeModel(predictor, max_batch=1, max_queue=100)
    inferred: list[int] = []
    infer = model.infer
    model.infer = lambda images: inferred.append(len(images)) or infer(images)  # type: ignore[func-returns-value, method-assign]
    model.gate.clear()
    app = create_app(model)
    with serving_app(app) as url:
        running = threading.Thread(target=sync_ask, args=(url, "predict", GOOD))
        running.start()
        assert model.started.wait(30)

        async def leave() -> None:
            async with AsyncClient(url, retries=0) as client:
                asks = [asyncio.ensure_future(client.predict(GOOD)) for _ in range(20)]
                while model.get().batcher.rows < 21:
                    await asyncio.sleep(0.01)
                for ask in asks:
                    ask.cancel()
                await asyncio.gather(*asks, return_exceptions=True)

        asyncio.run(leave())
        batcher = model.get().batcher
        # The one that runs, and the one that is next: whoever waits for so short a time is not watched.
        until(lambda: batcher.rows == 2 and app.state.admission.requests == 2)
        model.gate.set()
        running.join()
        assert len(sync_ask(url, "predict", GOOD)) == 1
    assert len(inferred) == 3, "the one that ran, the one that was next, and the one that came after"


@both
def test_zero_is_sent_and_refused_like_any_other_wrong_number(ask: Ask, predictor: Predictor) -> None:
    with serving(predictor) as url, pytest.raises(ServerError, match="top_k"):
        ask(url, "predict", GOOD, top_k=0)


@both
def test_a_named_model_is_asked(ask: Ask, predictor: Predictor) -> None:
    class Two(FakeModel):
        async def start(self) -> None:
            await super().start()
            both = Verified(self.real, self.infer)
            self.serve("other", {"2": both, "3": both})

    with serving_app(create_app(Two(predictor))) as url:
        for named, version in (("2", "2"), (None, "3")):
            description = ask(url, "model", model="other", version=named)
            assert (description["name"], description["version"]) == ("other", version)
        assert len(ask(url, "predict", GOOD, model="other")) == 1
        with pytest.raises(ServerError, match="model_required"):
            ask(url, "predict", GOOD)
