"""The server beside the bare ONNX Runtime session, in one run on the same cores.

    python benchmarks/serve.py runs/tiny/model.onnx --requests 2000

Prints images per second of the session (batch 1 and 32) and of `POST /v1/predict` with one and with 32 requests
in flight, and the ratios. The client is a bare asyncio socket loop in a process of its own, so that it costs
little; it still shares the cores with the server, as every figure here does.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import platform
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import numpy as np
from PIL import Image

from ducat_serve import Predictor
from ducat_serve.images import decode, to_array

BOUNDARY = b"ducat-benchmark"


def request_bytes(port: int, png: bytes) -> bytes:
    body = (
        b"--" + BOUNDARY + b'\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n'
        b"Content-Type: image/png\r\n\r\n" + png + b"\r\n--" + BOUNDARY + b"--\r\n"
    )
    head = (
        f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY.decode()}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def one_client(port: int, message: bytes, count: int, latencies: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(count):
        started = time.perf_counter()
        writer.write(message)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode())
        length = next(
            int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length")
        )
        await reader.readexactly(length)
        latencies.append(time.perf_counter() - started)
    writer.close()


def load(port: int, message: bytes, in_flight: int, requests: int) -> tuple[float, list[float]]:
    """Send ``requests`` requests over ``in_flight`` connections; returns seconds and latencies."""

    async def run() -> tuple[float, list[float]]:
        latencies: list[float] = []
        started = time.perf_counter()
        await asyncio.gather(
            *(one_client(port, message, requests // in_flight, latencies) for _ in range(in_flight))
        )
        return time.perf_counter() - started, latencies

    return asyncio.run(run())


@contextlib.contextmanager
def server(model: Path, port: int, threads: int) -> Iterator[None]:
    arguments = ["serve", str(model), "--port", str(port), "--threads", str(threads)]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "ducat_serve", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1)
                break
            time.sleep(0.1)
        else:
            raise RuntimeError("the server was not ready within a minute")
        yield
    finally:
        process.terminate()
        process.wait(30)


def session_rate(predictor: Predictor, batch: int, images: int) -> tuple[float, float]:
    """Images per second and median milliseconds per call of the bare session."""
    rows = np.random.default_rng(0).integers(
        0, 256, (batch, *predictor.spec.image_size, predictor.spec.channels), dtype=np.uint8
    )
    predictor(rows)
    times = []
    for _ in range(max(10, images // batch)):
        started = time.perf_counter()
        predictor(rows)
        times.append(time.perf_counter() - started)
    return batch / statistics.median(times), 1000 * statistics.median(times)


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--requests", default=2000, show_default=True)
@click.option("--threads", default=1, show_default=True, help="CPU threads of one inference, in both.")
@click.option("--port", default=3999, show_default=True)
def main(model: Path, requests: int, threads: int, port: int) -> None:
    """Compare the HTTP server with the bare session on MODEL."""
    predictor = Predictor(model, device="cpu", threads=threads)
    height, width = predictor.spec.image_size
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
        buffer, "PNG"
    )
    png = buffer.getvalue()
    decoding = []
    for _ in range(200):
        started = time.perf_counter()
        to_array(decode(png))
        decoding.append(time.perf_counter() - started)
    one, one_ms = session_rate(predictor, 1, requests)
    full, _ = session_rate(predictor, 32, requests)
    message = request_bytes(port, png)
    with server(model, port, threads), ProcessPoolExecutor(1) as client:
        client.submit(load, port, message, 32, 640).result()  # warm up
        _, alone = client.submit(load, port, message, 1, requests).result()
        seconds, crowd = client.submit(load, port, message, 32, requests).result()
    p50, p99 = (1000 * float(np.quantile(alone, q)) for q in (0.5, 0.99))
    rate = len(crowd) / seconds
    decode_ms = 1000 * statistics.median(decoding)
    print(
        f"{predictor.spec.network}, {height}x{width} PNG, {threads} inference thread(s), {platform.machine()}"
    )
    print(f"bare session, batch 1:        {one:8.0f} images/s   {one_ms:6.2f} ms")
    print(f"bare session, batch 32:       {full:8.0f} images/s")
    print(f"decoding one image:           {'':8}            {decode_ms:6.2f} ms")
    print(f"HTTP, 1 request in flight:    {1000 / p50:8.0f} images/s   {p50:6.2f} ms p50, {p99:.2f} ms p99")
    print(f"HTTP, 32 requests in flight:  {rate:8.0f} images/s")
    print(f"HTTP p50 - (decode + session) = {p50 - decode_ms - one_ms:.2f} ms")
    print(f"HTTP at 32 / session at 32    = {rate / full:.2f}")


if __name__ == "__main__":
    main()
