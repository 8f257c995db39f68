"""The process of the server: addresses that cannot be had, settings, and a uvicorn that we do not know."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ducat_serve.errors import DucatError
from service.models.registry import Models
from service.server.process import bind, main
from service.server.server import Server
from service.settings import Settings


def test_a_bound_socket_does_not_listen_yet() -> None:
    """So clients are refused, and not left waiting, until somebody is there to answer."""
    with bind("127.0.0.1", 0) as bound, pytest.raises(ConnectionRefusedError):
        socket.create_connection(bound.getsockname(), timeout=5)


@pytest.mark.parametrize(
    ("host", "cause", "remedy"),
    [
        ("192.0.2.1", "Cannot assign requested address", "--host 127.0.0.1"),
        ("no.such.host.invalid", "Name or service not known|Temporary failure", "--host 127.0.0.1"),
    ],
)
def test_an_address_that_cannot_be_had(host: str, cause: str, remedy: str) -> None:
    with pytest.raises(DucatError, match=cause) as error:
        bind(host, 3000)
    assert remedy in str(error.value.next_step)


def test_a_port_that_is_taken() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DucatError, match=f"127.0.0.1:{port}: Address already in use") as error:
            bind("127.0.0.1", port)
        assert f"--port {port + 1}" in str(error.value.next_step)


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_a_port_that_is_none(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--port", port])
    assert end.value.code == 2
    assert "--port" in capsys.readouterr().err


def test_a_uvicorn_without_our_hooks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound that silently does not hold would be worse than no server."""
    monkeypatch.delattr(HttpToolsProtocol, "on_response_complete")
    with pytest.raises(DucatError, match=r"HttpToolsProtocol\.on_response_complete is gone"):
        Server(Starlette(), Models(Settings(model=Path("model.onnx"))))
