"""What we change around BentoML: where it no longer fits there is a warning, and the server runs."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import pytest
from bentoml._internal.utils import circus
from starlette.types import ASGIApp, Receive, Scope, Send

from service.middleware.request_log import PROBES
from service.server.bentoml_overrides import without_control_ports, without_layers, without_pages

pytestmark = pytest.mark.filterwarnings("ignore")  # BentoML's own imports


def test_bentoml_has_none_of_its_layers_around_ours(
    onnx_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUCAT_SERVE_MODEL", str(onnx_model))
    app = importlib.import_module("service.app").DucatService.to_asgi()
    names = {layer.cls.__name__ for layer in app.user_middleware}
    assert names, "otherwise there is nothing to take out any more, and the override can go"
    assert not names & {"AccessLogMiddleware", "RunnerTrafficMetricsMiddleware"}, "these have a setting"
    assert without_layers(app).user_middleware == []  # type: ignore[attr-defined]
    assert app.build_middleware_stack().app.app is app.router, "only Starlette's own two are left"


def test_bentoml_answers_nothing_by_itself(onnx_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUCAT_SERVE_MODEL", str(onnx_model))
    app: Any = importlib.import_module("service.app").DucatService.to_asgi()
    before = {route.path for route in app.routes}
    assert before > {*PROBES, ""}, "otherwise there is nothing to take out any more, and the override can go"
    without_pages(app)
    assert [route.path for route in app.routes] == [""]
    assert app.router.default is app.routes[-1].app


def test_an_application_of_another_kind_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    async def other(scope: Scope, receive: Receive, send: Send) -> None: ...

    app: ASGIApp = other
    with caplog.at_level(logging.WARNING):
        assert without_layers(app) is app
        assert without_pages(app) is app
    assert "its own layers stay" in caplog.text
    assert "it answers some paths by itself" in caplog.text


class Stopped(Exception):
    """Nothing of the supervisor shall run here."""


@pytest.mark.parametrize(("plugins", "scheme"), [([], "inproc"), (["reload"], "tcp")])
def test_the_supervisor_of_bentoml_serve_opens_no_control_ports(
    plugins: list[str], scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def start(_supervisor: object, _watchers: object, **options: Any) -> None:
        seen.update(options)
        raise Stopped

    monkeypatch.setattr(circus.Arbiter, "__init__", start)
    without_control_ports()
    with pytest.raises(Stopped):
        circus.create_standalone_arbiter([], plugins=plugins)
    assert [seen[name].split(":")[0] for name in ("endpoint", "pubsub_endpoint")] == [scheme] * 2


def test_another_supervisor_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Other:
        def __init__(self) -> None: ...

    before = Other.__init__
    monkeypatch.setattr(circus, "Arbiter", Other)
    with caplog.at_level(logging.WARNING):
        without_control_ports()
    assert Other.__init__ is before
    assert "may listen on control ports" in caplog.text
    monkeypatch.delattr(circus, "Arbiter")
    without_control_ports()
    assert len(caplog.records) == 2
