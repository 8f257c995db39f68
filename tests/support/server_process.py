"""A real server in a process of its own, for tests that ask it over a real socket."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

WAIT = 60  # seconds; reached only when a test fails


@dataclass
class Server:
    """A running server, and the folder that it was started from."""

    process: psutil.Process
    port: int
    folder: Path
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def all_processes(self) -> list[psutil.Process]:
        """None where the server has ended; it takes its children with it."""
        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, trust_env=False, timeout=WAIT)

    def is_ready(self) -> bool:
        try:
            return self.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False


def serve_command(model: Path, *options: str) -> list[str]:
    return [sys.executable, "-P", "-m", "ducat_serve", "serve", str(model), *options]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(
    command: list[str],
    port: int,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    files: tuple[int, int] | None = None,
) -> Iterator[Server]:
    """``command`` running in ``folder``, ready, with its output in log.txt; killed with its children afterwards.

    ``files``: soft and hard limit of its open files.
    """
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, files)) if files else None,
        )
    server = Server(psutil.Process(process.pid), port, folder, log)
    deadline = time.monotonic() + WAIT
    try:
        while not server.is_ready():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield server
    finally:
        for one in server.all_processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(WAIT)


@contextlib.contextmanager
def running(model: Path, folder: Path, **environment: str) -> Iterator[Server]:
    """`ducat serve MODEL` as `started` starts it, with these variables too."""
    port = free_port()
    command = serve_command(model, "--port", str(port))
    with started(command, port, folder, {**os.environ, **environment}) as server:
        yield server
