"""OpenTelemetry spans of requests and of their stages, where OpenTelemetry's own variables name a collector.

Names and settings are OpenTelemetry's: OTEL_EXPORTER_OTLP_ENDPOINT (or ..._TRACES_ENDPOINT), OTEL_SERVICE_NAME,
OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES, OTEL_SDK_DISABLED and so on:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from ducat_serve.errors import UsageError, missing_extra

if TYPE_CHECKING:  # imported only where there is something to trace
    from opentelemetry.sdk.trace.export import SpanExporter

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"


class Tracing:
    """Makes spans; sends them in a thread of its own, from a bounded queue that drops what does not fit."""

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # The operator's OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win.
        named = Resource.create({"service.name": "ducat-serve"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=named, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("ducat_serve")
        self._propagator = TraceContextTextMapPropagator()
        self._server, self._error = trace.SpanKind.SERVER, trace.StatusCode.ERROR

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self | None:
        """None where no collector is named, or OTEL_SDK_DISABLED is true.

        Raises UsageError for a protocol other than http/protobuf, DucatError where the exporter is not installed.
        """
        is_off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
        if is_off or not any(environment.get(name) for name in _ENDPOINTS):
            return None
        asked = next((environment[name] for name in _PROTOCOLS if environment.get(name)), PROTOCOL)
        if asked != PROTOCOL:
            raise UsageError(
                f"OpenTelemetry's protocol {asked} is not spoken here.", f"set {_PROTOCOLS[1]}={PROTOCOL}"
            )
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError as error:
            raise missing_extra("opentelemetry-exporter-otlp-proto-http", "tracing") from error
        return cls(OTLPSpanExporter())

    @contextlib.contextmanager
    def request(self, scope: Mapping[str, Any], route: str) -> Iterator[None]:
        """The span of a whole request, given as its ASGI scope, below the one that its `traceparent` header names."""
        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        attributes = {
            "http.request.method": scope["method"],
            "http.route": route,
            "ducat.request_id": scope["state"]["request_id"],
        }
        with self._tracer.start_as_current_span(
            f"{scope['method']} {route}",
            context=self._propagator.extract(headers),
            kind=self._server,
            attributes=attributes,
        ) as span:
            yield
            status = scope["state"]["status"]
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                span.set_status(self._error, scope["state"].get("reason"))

    def trace_id(self) -> str | None:
        """Of the request that is being answered, as collectors show it; None where it is in no trace."""
        from opentelemetry import trace

        context = trace.get_current_span().get_span_context()
        return trace.format_trace_id(context.trace_id) if context.is_valid else None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A span below the current one."""
        with self._tracer.start_as_current_span(name):
            yield

    def batched(self, since: float, started: float, ended: float, rows: int) -> None:
        """Two spans below the current one: waiting for a batch of ``rows``, and its inference; by `perf_counter`."""
        to_epoch = time.time_ns() - time.perf_counter_ns()
        for name, begin, end in (("queue", since, started), ("infer", started, ended)):
            attributes = {"ducat.batch_rows": rows}
            span = self._tracer.start_span(
                name, start_time=to_epoch + int(begin * 1e9), attributes=attributes
            )
            span.end(to_epoch + int(end * 1e9))

    def stop(self) -> None:
        """Send what is left; blocks."""
        self._provider.shutdown()
