"""What Prometheus sees: outcomes, queue, batches, stages, the process, and what models answer (predictions.py).

All label sets are bounded: routes, status codes, error codes, stages and classes are ours, never a client's text. The
dummy mass is a signal of shifted or attacked inputs, not a defence by itself (docs/method.md).
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from ducat_serve.predictor import Predictions
from ducat_serve.spec import ModelSpec
from service.telemetry.predictions import AnswersCollector

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_MASS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


class ModelInfo(NamedTuple):
    """The labels of `ducat_model_info`: a version of a model, its weights and its function, and what it runs on."""

    model: str
    version: str
    digest: str  # of the weights; like `function` the first characters
    provider: str
    function: str
    precision: str


class Metrics:
    """The service's metrics, in a registry of their own."""

    def __init__(self, queue_rows: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "ducat_requests", "Requests by route and status.", ("route", "status"), registry=self._registry
        )
        self.rejects = Counter(
            "ducat_rejects",
            "Requests that were refused or failed, by error code.",
            ("reason",),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "ducat_request_seconds",
            "Whole requests that were answered, or that the server failed to answer; not those that it refused.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._stages = Histogram(
            "ducat_stage_seconds",
            "decode: reading and decoding a request's images; queue: waiting for a batch; infer: one batch.",
            ("stage",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batch_rows = Histogram(
            "ducat_batch_rows", "Rows per batch.", buckets=_ROWS, registry=self._registry
        )
        self._dummy_mass = Histogram(
            "ducat_dummy_mass",
            "Dummy mass of answers.",
            ("model", "version"),
            buckets=_MASS,
            registry=self._registry,
        )
        self._towers = Counter(
            "ducat_tower_answers",
            "Answers of a two-tower model, by the tower that gave them.",
            ("model", "tower"),
            registry=self._registry,
        )
        self.watch("ducat_queue_rows", "Rows waiting or running.", queue_rows)
        self._reloaded = Gauge(
            "ducat_last_reload_successful",
            "1 where every model was read when the models were last read, at the start included; else 0.",
            registry=self._registry,
        )
        self._reloaded_at = Gauge(
            "ducat_last_reload_success_timestamp_seconds",
            "When every model was read the last time, in seconds since 1970.",
            registry=self._registry,
        )
        self._model = Gauge(
            "ducat_model_info",
            "The served models.",
            ModelInfo._fields,
            registry=self._registry,
        )
        self.answers = AnswersCollector()
        self._registry.register(self.answers)
        ProcessCollector(registry=self._registry)
        # One child each, looked up once: `labels` takes as long as counting.
        self._stage = functools.cache(self._stages.labels)
        self._outcome = functools.cache(lambda route, status: self._requests.labels(route, str(status)))
        self._duration = functools.cache(self._seconds.labels)
        self._mass = functools.cache(self._dummy_mass.labels)
        self._tower = functools.cache(self._towers.labels)

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request is over; ``status`` is 0 where the client left without an answer."""
        self._outcome(route, status).inc()
        # A refusal (4xx) takes no time. Under overload most answers are refusals, and would hide how long others take.
        if 200 <= status < 400 or status >= 500:
            self._duration(route).observe(seconds)

    def refused(self, route: str, status: int, reason: str) -> None:
        """What never became a request was refused; it has no duration."""
        self._outcome(route, status).inc()
        self.rejects.labels(reason).inc()

    def serving(self, models: Iterable[ModelInfo]) -> None:
        """These are served from now on."""
        self._model.clear()
        for model in models:
            self._model.labels(*model).set(1)

    def watch(self, name: str, description: str, value: Callable[[], int]) -> None:
        """Show what ``value`` returns whenever Prometheus asks."""
        Gauge(name, description, registry=self._registry).set_function(value)

    def reloaded(self, successful: bool) -> None:
        """The models on disk were read, or one of them was refused."""
        self._reloaded.set(successful)
        if successful:
            self._reloaded_at.set_to_current_time()

    def batch(self, rows: int, waits: list[float], seconds: float) -> None:
        """A batch was inferred: ``waits`` are the seconds that its requests were queued."""
        self._batch_rows.observe(rows)
        for wait in waits:
            self._stage("queue").observe(wait)
        self._stage("infer").observe(seconds)

    def predicted(self, name: str, version: str, predictions: Predictions, spec: ModelSpec) -> None:
        """Predictions of a version of the model ``name``, which is what ``spec`` says, go out."""
        histogram = self._mass(name, version)
        for mass in predictions.dummy_mass.tolist():
            histogram.observe(mass)
            if (tower := spec.tower_of(mass)) is not None:
                self._tower(name, tower).inc()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of a request that succeeds."""
        started = time.perf_counter()
        yield
        self._stage(name).observe(time.perf_counter() - started)

    def text(self) -> bytes:
        """The Prometheus text format, version 0.0.4."""
        return generate_latest(self._registry)
