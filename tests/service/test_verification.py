"""Files that never finish loading, or take the process that loads them along."""

from __future__ import annotations

import asyncio
import errno
import shutil
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest

from ducat_serve.errors import VerificationError
from service.models import registry, verification
from service.models.errors import ModelRefused
from service.models.registry import Models
from service.models.served import Verified, load
from service.models.verification import in_daemon_thread, verify_apart
from service.settings import Settings
from tests.support.http_client import WAIT

HANGING = (sys.executable, "-c", "import time; time.sleep(600)")
CRASHING = (sys.executable, "-c", "import os; os.abort()")


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(4 * WAIT):
            await scenario()

    asyncio.run(whole())


def test_a_sound_file_passes_and_a_damaged_one_says_why(onnx_model: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "model.onnx"
    damaged.write_bytes(onnx_model.read_bytes()[:-1000])

    async def scenario() -> None:
        await verify_apart(onnx_model, Settings(model=onnx_model))
        with pytest.raises(VerificationError, match="is truncated"):
            await verify_apart(damaged, Settings(model=onnx_model))

    run(scenario)


def test_a_file_that_ends_its_process_is_refused(onnx_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_COMMAND", CRASHING)

    async def scenario() -> None:
        with pytest.raises(VerificationError, match="ended a process with -6"):
            await verify_apart(onnx_model, Settings(model=onnx_model))

    run(scenario)


@pytest.mark.parametrize("where", ["process", "thread", "disk"])
def test_what_hangs_is_given_up_and_later_loads_go_on(
    where: str,
    onnx_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = Path(shutil.copy(onnx_model, tmp_path / "model.onnx"))
    never = threading.Event()

    def hang(*_: object) -> Verified:
        never.wait()
        raise AssertionError

    async def scenario() -> None:
        models = Models(Settings(model=file))
        await models.start()
        before = models.get()
        with monkeypatch.context() as patch:
            patch.setattr(registry, "LOAD_SECONDS", 0.3)
            match where:
                case "process":
                    patch.setattr(verification, "_COMMAND", HANGING)
                case "thread":
                    patch.setattr(registry, "verify_apart", lambda *_: asyncio.sleep(0))
                    patch.setattr(registry, "load", hang)
                case "disk":
                    patch.setattr(models.repository, "find", hang)
            for _ in range(2):
                with pytest.raises(ModelRefused, match=r"within 0\.3 s"):
                    await models.load("model")
        assert models.get() is before
        async with asyncio.timeout(10):  # a killed process is listed until it has been waited for
            while psutil.Process().children():
                await asyncio.sleep(0.01)
        assert "was not loaded within 0.3 s" in caplog.text
        await models.load("model")
        assert models.get() is not before
        await models.stop()

    run(scenario)
    never.set()


def test_a_thread_that_never_returns_keeps_no_process_from_ending() -> None:
    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await in_daemon_thread(threading.Event().wait)
        with pytest.raises(ZeroDivisionError):
            await in_daemon_thread(divmod, 1, 0)
        assert await in_daemon_thread(max, 1, 2) == 2

    run(scenario)
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "load")


def test_the_warm_up_tells_what_a_batch_takes(onnx_model: Path) -> None:
    verified = load(onnx_model, Settings(model=onnx_model, max_batch=4))
    assert 0 < verified.seconds_per_batch < WAIT


def test_the_process_that_verifies_keeps_to_the_bounds_of_the_server(
    onnx_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, sys; sys.exit(os.environ.get('DUCAT_SERVE_THREADS') != '2')"
    monkeypatch.setattr(verification, "_COMMAND", (sys.executable, "-c", code))
    run(lambda: verify_apart(onnx_model, Settings(model=onnx_model, threads=2)))


def test_every_version_has_its_own_time_to_load(
    onnx_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in "123":
        (tmp_path / "digits" / version).mkdir(parents=True)
        shutil.copy(onnx_model, tmp_path / "digits" / version / "model.onnx")

    async def scenario() -> None:
        models = Models(Settings(model=tmp_path))
        await models.start()
        monkeypatch.setattr(registry, "LOAD_SECONDS", 1.0)
        monkeypatch.setattr(registry, "verify_apart", lambda *_: asyncio.sleep(0.5))
        assert len(await models.load("digits")) == 3
        await models.stop()

    run(scenario)


def test_a_file_system_that_does_not_answer_is_told_as_that(
    onnx_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        models = Models(Settings(model=onnx_model))
        await models.start()
        failing = TimeoutError(errno.ETIMEDOUT, "Connection timed out")
        monkeypatch.setattr(models.repository, "find", mock.Mock(side_effect=failing))
        with pytest.raises(ModelRefused, match="was refused"):
            await models.load("model")
        assert "Connection timed out" in caplog.text
        await models.stop()

    run(scenario)
