"""The application in this process, around a real model or one that tests can block and break."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from ducat_serve.predictor import Predictions, Predictor
from service.application import create_app
from service.models.registry import Models
from service.models.served import Verified
from service.settings import Settings
from tests.support.http_client import WAIT, is_ready, until

ALICE, BOB = "a" * 32, "b" * 32  # API keys
ADMIN = "m" * 32


class FakeModel(Models):
    """The real spec around an inference that a test can block (`gate`) or break (`failure`)."""

    def __init__(self, predictor: Predictor, **settings: Any) -> None:
        super().__init__(Settings(model=Path("model.onnx"), **settings))
        self.real = predictor
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.failure: Exception | None = None

    async def start(self) -> None:
        self.serve("model", {"1": Verified(self.real, self.infer)})
        self.is_loaded = True

    def infer(self, images: NDArray[np.uint8]) -> Predictions:
        self.started.set()
        assert self.gate.wait(WAIT)
        if self.failure is not None:
            raise self.failure
        return self.real(images)


def serve(models: Models, base_url: str = "http://testserver") -> TestClient:
    """The application around ``models``; no failure inside it reaches the test as an exception."""
    return TestClient(create_app(models), base_url, raise_server_exceptions=False)


@contextmanager
def serving(
    predictor: Predictor, base_url: str = "http://testserver", **settings: Any
) -> Iterator[TestClient]:
    """The application around a FakeModel with these settings, ready; asked under the name in ``base_url``."""
    with serve(FakeModel(predictor, **settings), base_url) as client:
        until(lambda: is_ready(client))
        yield client


@contextmanager
def serving_path(model: Path, **settings: Any) -> Iterator[tuple[TestClient, Models]]:
    """The application around what is at this path, with ADMIN as its admin key, ready."""
    models = Models(Settings(model=model, admin_key=ADMIN, **settings))
    with serve(models) as client:
        until(lambda: is_ready(client))
        yield client, models


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def reload(client: TestClient) -> Any:
    return client.post("/admin/reload", headers=bearer(ADMIN))


def metrics(client: TestClient, **headers: str) -> dict[tuple[str, ...], float]:
    """Every sample as (name, label values...) -> value."""
    text = client.get("/metrics", headers=headers).text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
