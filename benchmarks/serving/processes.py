"""Start a server as users do, wait until it is ready, and see what all of its processes take."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

READY_SECONDS = 60


@dataclass(frozen=True)
class Server:
    """How to start one; {port} in the command is filled in."""

    name: str
    command: list[str]
    path: str
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path = Path(tempfile.gettempdir())


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    port: int
    path: str
    process: psutil.Process
    seconds_to_ready: float

    def _all(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """User and system time of all its processes so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self._all())

    def memory(self) -> tuple[float, float]:
        """Resident and proportional set size of all its processes together, MiB."""
        rss = sum(process.memory_info().rss for process in self._all())
        pss = sum(process.memory_full_info().pss for process in self._all())
        return rss / 2**20, pss / 2**20


@contextlib.contextmanager
def running(server: Server) -> Iterator[Running]:
    """Start it and wait for 200 at /readyz; it is ended afterwards. Raises RuntimeError with its last words."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [word.format(port=port) for word in server.command]
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = psutil.Popen(
            command,
            cwd=server.folder,
            env={**os.environ, **server.environment},
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        try:
            while not _is_ready(port):
                if process.poll() is not None or time.perf_counter() - started > READY_SECONDS:
                    log.seek(0)
                    raise RuntimeError(f"{server.name} did not start:\n{log.read().decode()[-2000:]}")
                time.sleep(0.02)
            yield Running(port, server.path, process, time.perf_counter() - started)
        finally:
            children = process.children(recursive=True) if process.is_running() else []
            process.terminate()
            _, alive = psutil.wait_procs([process, *children], 20)
            for one in alive:
                one.kill()


def _is_ready(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
        return True
    return False
