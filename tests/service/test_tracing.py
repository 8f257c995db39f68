"""OpenTelemetry spans: what a collector gets of a request, and that nothing is sent unless one is named."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from ducat_serve.errors import DucatError, UsageError
from ducat_serve.predictor import Predictor
from service.telemetry.tracing import Tracing
from tests.support.application import FakeModel, serve
from tests.support.http_client import GOOD, is_ready, predictions, send, until
from tests.support.server_process import running

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


class Spans:
    """What was exported, by name."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = Tracing(self.exporter)

    def named(self, name: str) -> list[ReadableSpan]:
        self.tracing._provider.force_flush()
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


@contextmanager
def traced(predictor: Predictor, **settings: Any) -> Iterator[tuple[TestClient, FakeModel, Spans]]:
    spans = Spans()
    model = FakeModel(predictor, **settings)
    model.tracing = spans.tracing
    with serve(model) as client:
        until(lambda: is_ready(client))
        yield client, model, spans


def parent(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def attribute(span: ReadableSpan, name: str) -> Any:
    assert span.attributes is not None
    return span.attributes[name]


def times_of(span: ReadableSpan) -> tuple[int, int]:
    """Start and end, in nanoseconds."""
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def test_a_requests_stages_are_spans_below_its_own(predictor: Predictor) -> None:
    with traced(predictor) as (client, _, spans):
        answer = client.post(
            "/v1/predict", files=[("image", ("a.png", GOOD, "image/png"))], headers=TRACEPARENT
        )
        assert len(predictions(answer)) == 1
        (root,) = spans.named("POST predict")
        assert (f"{root.context.trace_id:032x}", f"{parent(root):016x}") == (TRACE, PARENT)
        assert root.attributes == {
            "http.request.method": "POST",
            "http.route": "predict",
            "http.response.status_code": 200,
            "ducat.request_id": answer.headers["x-request-id"],
        }
        stages = [spans.named(name) for name in ("decode", "queue", "infer")]
        started, ended = times_of(root)
        times = [started]
        for (stage,) in stages:
            assert (stage.context.trace_id, parent(stage)) == (root.context.trace_id, root.context.span_id)
            times += times_of(stage)
        # The last two come from another clock, which is read to within a microsecond or so.
        assert all(later - earlier > -1e6 for earlier, later in zip(times, [*times[1:], ended], strict=True))


def test_requests_of_one_batch_have_spans_of_their_own(predictor: Predictor) -> None:
    with traced(predictor, max_batch=3) as (client, model, spans), ThreadPoolExecutor(4) as pool:
        model.gate.clear()
        first = pool.submit(send, client, GOOD)
        assert model.started.wait(30)
        others = [pool.submit(send, client, GOOD) for _ in range(3)]
        until(lambda: model.get().batcher.rows == 4)
        model.gate.set()
        for answer in (first, *others):
            predictions(answer.result())
        roots = {span.context.span_id for span in spans.named("POST predict")}
        infers = spans.named("infer")
        assert {parent(span) for span in infers} == roots
        assert len(roots) == 4
        assert sorted(attribute(span, "ducat.batch_rows") for span in infers) == [1, 3, 3, 3]


def test_a_line_of_the_log_names_the_trace(predictor: Predictor, caplog: pytest.LogCaptureFixture) -> None:
    with traced(predictor) as (client, _, _), caplog.at_level(logging.INFO, "ducat_serve.access"):
        client.get("/nowhere", headers=TRACEPARENT)
    [line] = [
        json.loads(record.getMessage()) for record in caplog.records if "nowhere" in record.getMessage()
    ]
    assert line["trace_id"] == TRACE


def test_failures_are_marked_and_strangers_make_no_names(predictor: Predictor) -> None:
    with traced(predictor) as (client, model, spans):
        client.get("/some/path/that/does/not/exist", headers={"traceparent": "garbage"})
        (missing,) = spans.named("GET other")
        assert missing.parent is None
        assert attribute(missing, "http.response.status_code") == 404
        assert missing.status.is_unset
        model.failure = RuntimeError("broken")
        assert send(client, GOOD).status_code == 500
        (failed,) = spans.named("POST predict")
        assert (failed.status.is_ok, failed.status.description) == (False, "internal_error")


class Collector(BaseHTTPRequestHandler):
    """Keeps the spans that are posted to it."""

    received: list[Any]

    def do_POST(self) -> None:
        message = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        self.received += message.resource_spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


def test_a_real_server_sends_its_spans_to_the_collector_it_is_told(onnx_model: Path, tmp_path: Path) -> None:
    received: list[Any] = []
    here = type("Here", (Collector,), {"received": received})
    collector = HTTPServer(("127.0.0.1", 0), here)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    named = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SERVICE_NAME": "eyes"}
    try:
        with running(onnx_model, tmp_path, **named) as server:
            assert server.get("/v1/model").status_code == 200
            server.process.terminate()  # the queue is sent before the server ends
            server.process.wait(60)
    finally:
        collector.shutdown()
        collector.server_close()
    (resource, *_) = received
    assert {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"] == "eyes"
    names = {s.name for r in received for scope in r.scope_spans for s in scope.spans}
    assert "GET model" in names


ENDPOINT = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}


def test_nothing_is_traced_unless_a_collector_is_named() -> None:
    assert Tracing.from_environment({}) is None
    assert Tracing.from_environment({"OTEL_SERVICE_NAME": "x"}) is None
    assert Tracing.from_environment({**ENDPOINT, "OTEL_SDK_DISABLED": "true"}) is None
    assert Tracing.from_environment(ENDPOINT) is not None
    with pytest.raises(UsageError, match="grpc is not spoken"):
        Tracing.from_environment({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})


def test_an_exporter_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(DucatError, match=r"pip install '\.\[tracing\]'"):
        Tracing.from_environment(ENDPOINT)
