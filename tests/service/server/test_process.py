"""The process of the server: addresses that cannot be had, settings, and a uvicorn that we do not know."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
from pathlib import Path

import pytest
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ducat_serve.errors import DucatError
from service.models.registry import Models
from service.server import process
from service.server.process import bind, listen, main, without_brackets
from service.server.server import Server, most_connections, warn_of_open_port
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


def test_of_two_that_start_together_one_says_that_the_port_is_taken() -> None:
    with bind("127.0.0.1", 0) as first, bind("127.0.0.1", first.getsockname()[1]) as second:
        listen(first)
        with pytest.raises(DucatError, match="Address already in use") as error:
            listen(second)
    assert "--port" in str(error.value.next_step)


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_may_be_given_as_in_a_url(host: str) -> None:
    assert without_brackets(host) == "::1"


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_a_port_that_is_none(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--port", port])
    assert end.value.code == 2
    assert "--port" in capsys.readouterr().err


@pytest.mark.parametrize(("soft", "hard", "most"), [(256, 4096, 2048), (1024, 1200, 1072), (64, 144, 16)])
def test_as_many_connections_as_the_system_allows(
    soft: int, hard: int, most: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    with caplog.at_level(logging.WARNING):
        assert most_connections() == most
    assert raised == [(min(hard, 2176), hard)]
    assert (f"At most {most} connections" in caplog.text) == (most < 2048)


@pytest.mark.parametrize("hard", [0, 128, 143])
def test_a_system_that_allows_hardly_any_connection(hard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (hard, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    with pytest.raises(DucatError, match=f"{hard} open files.*at least 144") as error:
        most_connections()
    assert "ulimit -Hn 2176" in str(error.value.next_step)


@pytest.mark.parametrize(
    ("host", "keys", "warns"),
    [
        ("0.0.0.0", None, True),
        ("::", None, True),
        ("192.0.2.1", None, True),
        ("127.0.0.1", None, False),
        ("::1", None, False),
        ("localhost", None, False),
        ("0.0.0.0", "alice:" + "k" * 32, False),
        (None, None, False),
    ],
)
def test_a_port_that_is_open_to_everyone_is_named(
    host: str | None, keys: str | None, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_open_port(Settings(model=Path("model.onnx"), host=host, api_keys=keys))
    assert bool(caplog.records) == warns
    if warns:
        for word in (host, "--keys-file", "TLS", "everyone"):
            assert str(word) in caplog.text


def test_a_uvicorn_without_our_hooks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound that silently does not hold would be worse than no server."""
    monkeypatch.delattr(HttpToolsProtocol, "on_response_complete")
    with pytest.raises(DucatError, match=r"HttpToolsProtocol\.on_response_complete is gone"):
        Server(Starlette(), Models(Settings(model=Path("model.onnx"))))


def test_sigterm_ends_it_also_before_the_server_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process of a container would not be sent a signal that it does not handle."""

    def stopped_while_loading(_bound: socket.socket) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError

    monkeypatch.setattr(process, "serve", stopped_while_loading)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as ended:
            main(["--port", "39217"])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended.value.code == 143
