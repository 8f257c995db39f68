"""The BentoML service: `bentoml serve service.app:DucatService` with `DUCAT_SERVE_MODEL` set."""

from __future__ import annotations

import os

import bentoml

# Our metrics are those of one process in memory; BentoML would have them go through files, for its own that are off.
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)

from service.http import create_app
from service.models import Models
from service.settings import Settings
from service.stopping import install, require_installed
from service.tracing import Tracing

_settings = Settings.from_environment()
_models = Models(_settings, Tracing.from_environment())
install(_models)


@bentoml.asgi_app(create_app(_models), path="/")
@bentoml.service(
    name="ducat",
    # Ours do the same for a fraction of the time (service/watch.py, docs/performance.md): 45 % of the throughput of a
    # small model. BentoML's timeout cannot be switched off, and keeps a timer for as long after every request: a little
    # more than our deadline, which comes first and answers in the shape of every other error.
    traffic={"timeout": _settings.deadline + 5},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
)
class DucatService:
    """Robust image classification; see GET /v1/model for what was measured on this model."""

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    def check_server(self) -> None:
        require_installed()

    def __is_ready__(self) -> bool:
        return _models.is_ready
