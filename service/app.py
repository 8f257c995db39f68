"""The BentoML service: what `ducat serve` runs, and a Bento packs. `DUCAT_SERVE_MODEL` names the model."""

from __future__ import annotations

import gc
import os

import bentoml

# Our metrics are those of one process in memory; BentoML would have them go through files, for its own that are off.
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)

from service.api.admission import AdmissionControl
from service.application import create_app
from service.models.registry import Models
from service.settings import Settings
from service.telemetry.tracing import Tracing

_settings = Settings.from_environment()
models = Models(_settings, Tracing.from_environment())
_app = create_app(models)
_admission: AdmissionControl = _app.state.admission


@bentoml.asgi_app(_app, path="/")
@bentoml.service(
    name="ducat",
    traffic={"timeout": _settings.deadline + 5},  # for BentoML's own clients
    # All of these are ours. What no setting switches off is taken out by service/server/bentoml_overrides.py.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
)
class DucatService:
    """Robust image classification; see GET /v1/model for what was measured on this model."""

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start_decoders(self) -> None:
        await _admission.decoders.start()

    def __is_alive__(self) -> bool:
        return models.is_live

    def __is_ready__(self) -> bool:
        return _admission.is_ready


# What is imported by now stays for good. Without this a fifth of the time at 32 requests in flight goes into looking
# for garbage among it.
gc.collect()
gc.freeze()
gc.set_threshold(10_000, 10, 10)
