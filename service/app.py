"""The BentoML service: `bentoml serve service.app:DucatService` with `DUCAT_SERVE_MODEL` set."""

from __future__ import annotations

import bentoml

from service.http import create_app
from service.model import Model
from service.settings import Settings

_model = Model(Settings.from_environment())


@bentoml.asgi_app(create_app(_model), path="/")
@bentoml.service(name="ducat", traffic={"timeout": 120})
class DucatService:
    """Robust image classification; see GET /v1/model for what was measured on this model."""

    def __is_ready__(self) -> bool:
        return _model.is_ready
