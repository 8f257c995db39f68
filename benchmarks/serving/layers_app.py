"""Our application in a BentoML service with only those of BentoML's own layers that LAYERS names.

    DUCAT_SERVE_MODEL=model.onnx LAYERS=access_log,metrics bentoml serve layers_app:Layers

`timeout`, `context` and, with every URL excluded, `tracing_off` cannot be switched off by any setting: here they are
taken out of the list of middlewares.
"""

from __future__ import annotations

import gc
import os

import bentoml
from _bentoml_impl.server.app import ServiceAppFactory

from service.application import create_app
from service.models.registry import Models
from service.settings import Settings

layers = set(filter(None, os.environ["LAYERS"].split(",")))
models = Models(Settings.from_environment())
_taken_out = set()
if "timeout" not in layers:
    _taken_out.add("TimeoutMiddleware")
if "context" not in layers:
    _taken_out.add("ContextMiddleware")
if not layers & {"tracing", "tracing_off"}:
    _taken_out.add("OpenTelemetryMiddleware")
_all = ServiceAppFactory.middlewares.fget


def _some(factory: ServiceAppFactory):  # type: ignore[no-untyped-def]
    return [middleware for middleware in _all(factory) if middleware.cls.__name__ not in _taken_out]


ServiceAppFactory.middlewares = property(_some)


@bentoml.asgi_app(create_app(models), path="/")
@bentoml.service(
    name="layers",
    traffic={"timeout": 15, **({"max_concurrency": 1000} if "concurrency" in layers else {})},
    metrics={"enabled": "metrics" in layers},
    logging={"access": {"enabled": "access_log" in layers}},
    tracing={"excluded_urls": None if "tracing" in layers else ".*"},
)
class Layers:
    """The application of `ducat serve`."""

    def __is_ready__(self) -> bool:
        return models.is_ready


gc.collect()
gc.freeze()
gc.set_threshold(10_000, 10, 10)
