"""Our own application without BentoML: what is left when nothing is around it.

DUCAT_SERVE_MODEL=model.onnx uvicorn starlette_app:app
"""

from __future__ import annotations

import gc

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.application import create_app
from service.models.registry import Models
from service.settings import Settings

models = Models(Settings.from_environment())
app = create_app(models)


async def _ready(_: Request) -> Response:
    return Response(status_code=200 if models.is_ready else 503)


app.router.routes.insert(0, Route("/readyz", _ready))
# As service/app.py does.
gc.collect()
gc.freeze()
gc.set_threshold(10_000, 10, 10)
