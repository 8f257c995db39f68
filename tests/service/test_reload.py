"""Swapping the model of a running server: verified, warmed, at once, with no request lost."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from ducat_serve.predictor import Predictor
from service.application import reload_when
from service.models import served
from service.models.registry import Models
from service.settings import Settings
from tests.support.application import ADMIN, bearer, metrics, reload, serving_path
from tests.support.http_client import GOOD, WAIT, assert_error, predictions, send, until


def digest(client: TestClient) -> str:
    spec: dict[str, Any] = client.get("/v1/model").json()["spec"]
    return str(spec["weights_digest"])


@pytest.fixture
def file(onnx_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(onnx_model, tmp_path / "model.onnx"))


def test_a_new_file_is_served_after_a_reload_and_not_before(file: Path, other_model: Path) -> None:
    with serving_path(file) as (client, _):
        old = digest(client)
        before = predictions(send(client, GOOD))
        shutil.copy(other_model, file)
        assert digest(client) == old
        assert predictions(send(client, GOOD)) == before
        answer = reload(client)
        assert answer.status_code == 200
        new = Predictor(other_model).spec.weights_digest
        assert answer.json()["models"][0]["weights_digest"] == digest(client) == new != old
        assert predictions(send(client, GOOD)) != before
        models = [key[1] for key in metrics(client, **bearer(ADMIN)) if key[0] == "ducat_model_info"]
        assert models == [new[:12]]


def test_whether_the_last_reload_worked_is_seen(file: Path) -> None:
    with serving_path(file) as (client, _):
        seen = metrics(client, **bearer(ADMIN))
        assert seen[("ducat_last_reload_successful",)] == 1
        first = seen[("ducat_last_reload_success_timestamp_seconds",)]
        assert first > 0
        whole = file.read_bytes()
        file.write_bytes(b"garbage")
        assert_error(reload(client), 422, "model_refused")
        seen = metrics(client, **bearer(ADMIN))
        assert seen[("ducat_last_reload_successful",)] == 0
        assert seen[("ducat_last_reload_success_timestamp_seconds",)] == first
        file.write_bytes(whole)
        assert reload(client).status_code == 200
        seen = metrics(client, **bearer(ADMIN))
        assert seen[("ducat_last_reload_successful",)] == 1
        assert seen[("ducat_last_reload_success_timestamp_seconds",)] > first


@pytest.mark.parametrize("damage", ["garbage", "deleted", "flipped", "truncated", "unsound", "unforeseen"])
def test_a_bad_file_is_refused_and_the_old_model_stays(
    file: Path, damage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving_path(file) as (client, _):
        before = predictions(send(client, GOOD))
        data = bytearray(file.read_bytes())
        match damage:
            case "garbage":
                file.write_bytes(b"garbage" * 1000)
            case "deleted":
                file.unlink()
            case "flipped":
                data[len(data) // 2] ^= 1
                file.write_bytes(data)
            case "truncated":
                file.write_bytes(data[:-1000])
            case "unsound":
                original = Predictor.__call__

                def nan(self: Predictor, images: Any) -> Any:
                    answer = original(self, images)
                    answer.logits[:] = np.nan
                    return answer

                monkeypatch.setattr(Predictor, "__call__", nan)
            case "unforeseen":

                def fail(*_: Any) -> None:
                    raise KeyError("a key that this file lacks")

                monkeypatch.setattr("service.models.registry.load", fail)
        assert_error(reload(client), 422, "model_refused")
        monkeypatch.undo()
        assert "the old one stays" in caplog.text
        assert predictions(send(client, GOOD)) == before


def test_no_request_fails_while_models_are_swapped_under_load(
    file: Path, onnx_model: Path, other_model: Path
) -> None:
    """Every answer is whole: of the one model or of the other, with that model's name on it."""
    expected = {}
    for path in (onnx_model, other_model):
        with serving_path(path) as (client, _):
            expected[digest(client)] = predictions(send(client, GOOD))
    assert len({str(answer) for answer in expected.values()}) == 2
    with serving_path(file) as (client, model):
        stop, failures, seen = threading.Event(), [], set()

        def ask() -> None:
            while not stop.is_set():
                response = send(client, GOOD)
                if response.status_code != 200:
                    failures.append(response.text)
                    continue
                name = response.json()["model"]["weights_digest"]
                seen.add(name)
                (answer,), (wanted,) = response.json()["predictions"], expected[name]
                if (
                    answer["class_id"] != wanted["class_id"]
                    or abs(answer["confidence"] - wanted["confidence"]) > 1e-5
                ):
                    failures.append(name)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(4):
            shutil.copy((other_model, onnx_model)[turn % 2], file)
            assert reload(client).status_code == 200
        stop.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert seen == set(expected)
        until(lambda: not model._draining_versions)


@pytest.fixture
def slow_start(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """The first model is read at once, which sets the first event, and comes when the second is set."""
    read, go = threading.Event(), threading.Event()
    load = served.load

    def slowly(*what: Any) -> Any:
        is_first, loaded = not read.is_set(), load(*what)
        read.set()
        if is_first:
            assert go.wait(WAIT)
        return loaded

    monkeypatch.setattr("service.models.registry.load", slowly)
    return read, go


def test_a_reload_during_the_start_is_not_undone_by_it(
    file: Path, other_model: Path, slow_start: tuple[threading.Event, threading.Event]
) -> None:
    read, go = slow_start
    new = Predictor(other_model).spec.weights_digest

    async def scenario() -> str:
        models = Models(Settings(model=file))
        starting = asyncio.create_task(models.start())
        assert await asyncio.to_thread(read.wait, WAIT)
        shutil.copy(other_model, file)
        reloading = asyncio.create_task(models.reload())
        # It may be done by now, and then the start must not undo it.
        await asyncio.wait([reloading], timeout=1)
        go.set()
        await asyncio.gather(starting, reloading)
        found = models.get().predictor.spec.weights_digest
        await models.stop()
        return found

    assert asyncio.run(scenario()) == new


def test_however_often_a_reload_is_asked_for_one_runs_and_one_waits() -> None:
    """The one that waits begins after the last time it was asked for."""
    begun: list[int] = []
    asked = 0

    class Slow:
        go = asyncio.Event()

        async def reload(self) -> None:
            begun.append(asked)
            await self.go.wait()

    async def scenario() -> None:
        nonlocal asked
        hangup, models = asyncio.Event(), Slow()
        task = asyncio.create_task(reload_when(hangup, models))  # type: ignore[arg-type]
        for asked in range(1, 201):  # noqa: B007
            hangup.set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert begun == [1]
        models.go.set()
        while len(begun) < 2:
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        assert begun == [1, 200]
        task.cancel()

    asyncio.run(scenario())


def test_only_admins_reload_and_without_a_key_nobody(file: Path, client: TestClient) -> None:
    assert_error(client.post("/admin/reload"), 404, "not_found")
    with serving_path(file, api_keys=f"alice:{'a' * 32}") as (guarded, _):
        assert_error(guarded.post("/admin/reload"), 401, "unauthorized")
        assert_error(guarded.post("/admin/reload", headers=bearer("a" * 32)), 401, "unauthorized")
        assert_error(guarded.post("/admin/other", headers=bearer(ADMIN)), 404, "not_found")
        assert reload(guarded).status_code == 200
