"""Clients that send forms over a number of connections: `wrk` where it is installed, else asyncio."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serving.uploads import CONTENT_TYPE

WRK = shutil.which("wrk")
NAME = "wrk, 1 thread" if WRK else "asyncio (wrk is not installed)"
_SCRIPT = Path(__file__).parent / "form.lua"


class Load(NamedTuple):
    """What a client saw."""

    requests: int
    seconds: float
    p50: float  # milliseconds
    p99: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def closed_loop(port: int, path: str, form: bytes, in_flight: int, seconds: float) -> Load:
    """Keep ``in_flight`` requests in flight for some seconds. Raises RuntimeError for any answer but 200."""
    if WRK is None:
        with ProcessPoolExecutor(1) as process:
            return process.submit(_asyncio_load, port, message(port, path, form), in_flight, seconds).result()
    with tempfile.NamedTemporaryFile() as body:
        body.write(form)
        body.flush()
        done = subprocess.run(
            [WRK, "-t1", f"-c{in_flight}", f"-d{seconds:.0f}s", "--timeout", "20s", "-s", str(_SCRIPT), "--latency",
             f"http://127.0.0.1:{port}{path}"],
            env={**os.environ, "WRK_BODY": body.name, "WRK_CONTENT_TYPE": CONTENT_TYPE},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    numbers = next(line for line in done.stdout.splitlines() if line.startswith("RESULT")).split()[1:]
    requests, microseconds, errors, p50, p99 = map(float, numbers)
    if errors:
        raise RuntimeError(f"{errors:.0f} of {requests:.0f} requests to {path} failed")
    return Load(int(requests), microseconds / 1e6, p50 / 1000, p99 / 1000)


def message(port: int, path: str, form: bytes) -> bytes:
    """The bytes of a POST request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: {CONTENT_TYPE}\r\nContent-Length: {len(form)}\r\n\r\n"
    )
    return head.encode() + form


class Connection:
    """One kept-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    @property
    def is_open(self) -> bool:
        return not self._reader.at_eof()

    async def ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        """Status, head in lower case, body."""
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = head.index(b"content-length:") + len(b"content-length:")
        body = await self._reader.readexactly(int(head[length : head.index(b"\r\n", length)]))
        return int(head[9:12]), head, body

    def close(self) -> None:
        self._writer.close()


async def in_turn(
    port: int,
    in_flight: int,
    next_request: Callable[[], bytes | None],
    see: Callable[[int, bytes, float], None],
) -> None:
    """Send what ``next_request`` gives until it gives None; ``see`` gets status, body and seconds of each answer."""

    async def one() -> None:
        connection = await Connection.open(port)
        while (request := next_request()) is not None:
            started = time.perf_counter()
            status, _, body = await connection.ask(request)
            see(status, body, time.perf_counter() - started)
        connection.close()

    await asyncio.gather(*(one() for _ in range(in_flight)))


def _asyncio_load(port: int, request: bytes, in_flight: int, seconds: float) -> Load:
    latencies: list[float] = []

    def see(status: int, body: bytes, latency: float) -> None:
        if status != 200:
            raise RuntimeError(body.decode())
        latencies.append(1000 * latency)

    started = time.perf_counter()
    asyncio.run(
        in_turn(port, in_flight, lambda: request if time.perf_counter() - started < seconds else None, see)
    )
    took = time.perf_counter() - started
    return Load(len(latencies), took, *(float(np.quantile(latencies, q)) for q in (0.5, 0.99)))
