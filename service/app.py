"""The BentoML service: `bentoml serve service.app:DucatService` with `DUCAT_SERVE_MODEL` set."""

from __future__ import annotations

import gc
import os

import bentoml

# Our metrics are those of one process in memory; BentoML would have them go through files, for its own that are off.
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)

from service.application import create_app
from service.models.registry import Models
from service.server.bentoml_patches import take_out_layers
from service.server.server import install, require_installed
from service.settings import Settings
from service.telemetry.tracing import Tracing

take_out_layers()
_settings = Settings.from_environment()
_models = Models(_settings, Tracing.from_environment())
install(_models)


@bentoml.asgi_app(create_app(_models), path="/")
@bentoml.service(
    name="ducat",
    traffic={"timeout": _settings.deadline + 5},  # for BentoML's own clients
    metrics={"enabled": False},
)
class DucatService:
    """Robust image classification; see GET /v1/model for what was measured on this model."""

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    def check_server(self) -> None:
        require_installed()

    def __is_ready__(self) -> bool:
        return _models.is_ready


# What is imported by now stays for good. Without this a fifth of the time at 32 requests in flight goes into looking
# for garbage among it.
gc.collect()
gc.freeze()
gc.set_threshold(10_000, 10, 10)
