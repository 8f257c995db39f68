"""Fixtures that many tests share: a small trained run and its export, made once for all test processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from pathlib import Path

# Before torch and NumPy start their thread pools: tests run in parallel on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests that import onnxruntime themselves

import pytest
from starlette.testclient import TestClient

from ducat_serve.cli.main import run
from ducat_serve.networks.allowed import allow
from ducat_serve.predictor import Predictor
from service.application import create_app
from service.models.registry import Models
from service.settings import Settings
from tests.support import tiny_network
from tests.support.http_client import is_ready, until
from tests.support.int8 import digits_with_dummies
from tests.support.made_once import made_once
from tests.support.order import put_long_files_first
from tests.support.towers import exported_towers
from tests.support.unit_tests import mark_unit_tests, nothing_starts_or_trains

PROJECT = Path(__file__).parent.parent
SHARED_DATA = PROJECT.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_unit_tests(items)
    if "PYTEST_XDIST_WORKER" in os.environ:  # a process alone is through at the same time in any order
        put_long_files_first(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Guard unit tests in every run, with the fixtures of any scope that they are the first to use."""
    with nothing_starts_or_trains(item) if item.get_closest_marker("unit") else nullcontext():
        return (yield)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No DUCAT_* variable of the developer's reaches a test."""
    for name in os.environ:
        if name.startswith("DUCAT_") and name != "DUCAT_CACHE":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decoded data goes to a temporary cache, never to the developer's."""
    os.environ["DUCAT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images beside the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real images in ../shared/data, which are not part of the project")
    return SHARED_DATA


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A paper-DUCAT run on digits, long enough to be better than chance: 10 classes, fold max."""

    def make(folder: Path) -> None:
        arguments = ["train", "--dataset", "digits", "--epochs", "4", "--attack-steps", "2", "--eps", "0.1"]
        assert run([*arguments, "--precision", "float32", "--out", str(folder / "paper")]) == 0

    return made_once("runs", tmp_path_factory, make) / "paper"


@pytest.fixture(scope="session")
def checkpoint(run_folder: Path) -> Path:
    """`model.safetensors` of `run_folder`."""
    return run_folder / "model.safetensors"


@pytest.fixture(scope="session")
def onnx_model(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of `run_folder`."""

    def make(folder: Path) -> None:
        assert run(["export", str(run_folder), "--onnx", "--out", str(folder / "model.onnx")]) == 0

    return made_once("export", tmp_path_factory, make) / "model.onnx"


@pytest.fixture(scope="session")
def measured_folder(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run_folder` with a small robustness report, and exported with the images that it was attacked on."""

    def make(folder: Path) -> None:
        shutil.copytree(run_folder, folder, dirs_exist_ok=True)
        assert run(["evaluate", str(folder), "--attack", "pgd", "--max-examples", "40"]) == 0
        assert run(["export", str(folder), "--onnx", "--examples"]) == 0

    return made_once("measured", tmp_path_factory, make)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of another model of the same classes: one epoch, without dummies."""

    def make(folder: Path) -> None:
        flags = ["--epochs", "1", "--attack-steps", "1", "--precision", "float32", "--ducat", "off"]
        assert run(["train", "--dataset", "digits", *flags, "--out", str(folder / "run")]) == 0
        assert run(["export", str(folder / "run"), "--onnx"]) == 0

    return made_once("other", tmp_path_factory, make) / "run" / "model.onnx"


@pytest.fixture(scope="session")
def towers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-tower model, checkpoint and export: see `exported_towers`."""
    allow(tiny_network.NAME)  # in each process, not only in the one that makes it
    return made_once("towers", tmp_path_factory, exported_towers)


@pytest.fixture(scope="session")
def int8_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of fold max that was not trained here, with its exports in float32 and int8."""

    def make(folder: Path) -> None:
        checkpoint = str(digits_with_dummies(folder / "model.safetensors"))
        assert run(["export", checkpoint]) == 0
        assert run(["export", checkpoint, "--precision", "int8"]) == 0

    return made_once("int8", tmp_path_factory, make)


@pytest.fixture(scope="module")
def predictor(onnx_model: Path) -> Predictor:
    """The exported model without the service."""
    return Predictor(onnx_model)


@pytest.fixture(scope="module")
def client(onnx_model: Path) -> Iterator[TestClient]:
    """The service with the real model, ready; no failure inside it reaches the test as an exception."""
    model = Models(Settings(model=onnx_model))
    with TestClient(create_app(model), raise_server_exceptions=False) as test_client:
        until(lambda: is_ready(test_client))
        yield test_client
