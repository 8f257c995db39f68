"""The BentoML service: `bentoml serve service.app:DucatService` with `DUCAT_SERVE_MODEL` set."""

from __future__ import annotations

import gc
import os

import bentoml

# Our metrics are those of one process in memory; BentoML would have them go through files, for its own that are off.
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)

from service.http import create_app
from service.model import Model
from service.no_timer import take_out_timer
from service.settings import Settings

take_out_timer()

# As OpenTelemetry's own variables say: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
_traced = any(name.startswith("OTEL_EXPORTER_") for name in os.environ)
_settings = Settings.from_environment()
_model = Model(_settings)


@bentoml.asgi_app(create_app(_model), path="/")
@bentoml.service(
    name="ducat",
    # Ours do the same for a fraction of the time (service/watch.py, docs/performance.md): 45 % of the throughput of a
    # small model. The timeout is taken out above; here it is for BentoML's own clients.
    traffic={"timeout": _settings.deadline + 5},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": None if _traced else ".*"},
)
class DucatService:
    """Robust image classification; see GET /v1/model for what was measured on this model."""

    def __is_ready__(self) -> bool:
        return _model.is_ready


# What is imported by now stays for good. Without this a fifth of the time at 32 requests in flight goes into looking
# for garbage among it.
gc.collect()
gc.freeze()
gc.set_threshold(10_000, 10, 10)
