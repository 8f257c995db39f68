"""A real `ducat serve` into which tests put faults, and clients that behave badly."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx

from ducat_serve.predictor import Predictor
from tests.support.http_client import DIGITS, GOOD, part
from tests.support.server_process import WAIT, Server, free_port, serve_command, started

ADMIN = "m" * 32
HOOKS = Path(__file__).parent / "fault_hooks"
UPLOAD = part(GOOD) + b"--B--\r\n"


@dataclass
class FaultyServer(Server):
    """A server with the switches of fault_hooks/ in ``folder``."""

    predictor: Predictor

    def predict(self) -> httpx.Response:
        return self.post("/v1/predict", files={"image": ("a.png", GOOD, "image/png")})

    def is_right(self, response: httpx.Response) -> bool:
        """Whether the answer to `predict` is the model's own."""
        if response.status_code != 200:
            return False
        (answer,) = response.json()["predictions"]
        expected = self.predictor(DIGITS[:1])
        return bool(
            answer["class_id"] == expected.label[0]
            and abs(answer["confidence"] - expected.probabilities.max()) < 1e-4
        )

    def assert_good(self) -> None:
        """The next good request is answered correctly."""
        response = self.predict()
        assert self.is_right(response), response.text

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT
        while not condition():
            assert time.monotonic() < deadline, f"{what}\n{self.log.read_text()}"
            time.sleep(0.02)

    def switch(self, name: str, content: str | None) -> None:
        """Set a fault of fault_hooks/, or end it."""
        file = self.folder / name
        if content is None:
            file.unlink(missing_ok=True)
        else:
            new = self.folder / f"{name}.new"
            new.write_text(content)
            new.rename(file)

    def queued(self) -> float:
        headers = {"Authorization": f"Bearer {ADMIN}"}
        text = httpx.get(self.url + "/metrics", headers=headers, trust_env=False, timeout=WAIT).text
        return float(text.split("\nducat_queue_rows ")[1].split()[0])

    def post(self, path: str, **body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {ADMIN}"}
        return httpx.post(self.url + path, headers=headers, trust_env=False, timeout=WAIT, **body)

    def reload(self) -> httpx.Response:
        return self.post("/admin/reload")

    def connect(self, data: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT)
        connection.sendall(data)
        return connection


@contextlib.contextmanager
def ending(stop: threading.Event) -> Iterator[None]:
    """Set ``stop`` in the end, also where a test fails: clients in threads would keep it from ending."""
    try:
        yield
    finally:
        stop.set()


@contextlib.contextmanager
def running(
    model: Path, folder: Path, *options: str, files: tuple[int, int] | None = None
) -> Iterator[FaultyServer]:
    """Start a server, hand it out when it is ready, kill what is left of it.

    ``files``: soft and hard limit of its open files.
    """
    folder.mkdir(exist_ok=True)
    port = free_port()
    environment = {
        **os.environ,
        "FAULTS": str(folder),
        "PYTHONPATH": os.pathsep.join([str(HOOKS), os.environ.get("PYTHONPATH", "")]),
        "DUCAT_SERVE_ADMIN_KEY": ADMIN,
    }
    command = serve_command(model, "--port", str(port), *options)
    with started(command, port, folder, environment, files) as server:
        yield FaultyServer(server.process, port, folder, server.log, Predictor(model, "cpu"))


def head(path: str, length: int, method: str = "POST", **headers: str) -> bytes:
    """The head of a request with a body of ``length`` bytes."""
    lines = {
        "Host": "localhost",
        "Content-Type": "multipart/form-data; boundary=B",
        "Content-Length": str(length),
    }
    text = "".join(f"{name}: {value}\r\n" for name, value in {**lines, **headers}.items())
    return f"{method} {path} HTTP/1.1\r\n{text}\r\n".encode()


def trickle(clients: list[tuple[socket.socket, bytes]], every: float = 0.2) -> list[bytes]:
    """Send each client's bytes again and again until the server has closed its connection; what each one got."""
    more = dict(clients)
    got = dict.fromkeys(more, b"")
    for connection in more:
        connection.setblocking(False)
    with selectors.DefaultSelector() as selector:
        for connection in more:
            selector.register(connection, selectors.EVENT_READ)
        deadline = time.monotonic() + WAIT
        while selector.get_map():
            assert time.monotonic() < deadline, "the server never closed the connection"
            for key, _ in selector.select(every):
                connection = cast(socket.socket, key.fileobj)
                piece = b""
                with contextlib.suppress(ConnectionResetError):
                    piece = connection.recv(65536)
                got[connection] += piece
                if not piece:
                    selector.unregister(connection)
                    connection.close()
            for key in selector.get_map().values():
                connection = cast(socket.socket, key.fileobj)
                with contextlib.suppress(OSError):
                    connection.send(more[connection])
    return list(got.values())


def error_code(answer: bytes) -> str:
    """The code in the first answer on a connection."""
    _, _, body = answer.partition(b"\r\n\r\n")
    document, _ = json.JSONDecoder().raw_decode(body.decode())
    error = document["error"]
    return str(document["code"] if isinstance(error, str) else error["code"])  # below /v2 the error is text
