"""A hostile client against a real server: fuzzed requests, then bombs while others want to be served.

    python benchmarks/hostile.py runs/demo/model.onnx --requests 12000

Starts `ducat serve MODEL` on a free port of 127.0.0.1 and stops it at the end. Part 1 sends requests that were changed
at random in method, path, headers, JSON types and bytes, and counts the answers: none may be a 500, and the server must
answer a sound request afterwards. Part 2 keeps image and JSON bombs in flight and asks for /livez and a small
prediction meanwhile.
"""

from __future__ import annotations

import base64
import copy
import http.client
import io
import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from ducat_serve.predictor import Predictor
from ducat_serve.spec import ModelSpec

HOST = "127.0.0.1"
ANSWER_SECONDS = 30.0
NUMBERS = (0, -1, 1, True, False, 2**31, 2**63, 2**64, 10**30, 1e308, -0.0, 0.5, "1", "", None)
VALUES: tuple[Any, ...] = (*NUMBERS, [], {}, [[]], [{}], {"a": {}}, "x" * 5000, "\x00", "\ud83d", "é")
HEADERS = (
    ("Content-Length", ("0", "-1", "+3", "1e3", "9" * 30, "3, 3", "")),
    ("Transfer-Encoding", ("chunked", "gzip, chunked", "identity", "xchunked", "")),
    (
        "Inference-Header-Content-Length",
        ("0", "-1", "0" * 4301, "9" * 4301, "1" * 19, "٣", "0x10", "1.0", ""),
    ),
    ("Content-Type", ("", "x" * 300, "application/json; charset=utf-7", "multipart/form-data", "image/\x80")),
    ("Expect", ("100-continue", "200-ok")),
    ("Authorization", ("Bearer", "Bearer " + "k" * 9000, "Basic Og==", "\x01")),
    ("Host", ("", "evil.example", "[::1", "a b")),
    ("Accept-Encoding", ("*;q=0", "gzip")),
    ("Range", ("bytes=0-", "bytes=-1,-2,-3")),
    ("traceparent", ("00-0-0-0", "z" * 100)),
)
PATHS = (
    *("/v1/predict", "/v1/model", "/v1/models", "/v1/model?model=", "/v1/predict?model=../..&version=%00"),
    *("/v2", "/v2/", "/v2/health/ready", "/v2/models/x/infer", "/v2/repository/index", "/admin/reload"),
    *(
        "/metrics",
        "/openapi.json",
        "/",
        "//",
        "/%2e%2e/etc/passwd",
        "/schema.json",
        "/docs.json",
        "/livez",
        "/readyz",
    ),
)


@dataclass
class Sent:
    """One request, in parts that can be changed."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    document: dict[str, Any] | None = field(default=None)  # what the body is made of, where that is JSON

    def raw(self) -> bytes:
        body = self.body if self.document is None else json.dumps(self.document).encode()
        headers = {"Host": HOST, "Content-Length": str(len(body)), "Connection": "close", **self.headers}
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        return "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + body


def seeds(name: str, spec: ModelSpec) -> list[Sent]:
    """Sound requests, one of every kind that the server takes."""
    height, width = spec.image_size
    pixels = np.zeros((1, height, width, spec.channels), np.uint8)
    png, npy = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (width, height)).save(png, "PNG")
    np.save(npy, pixels)
    form = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    tensor = {"name": "images", "datatype": "UINT8", "shape": list(pixels.shape)}
    binary = {"inputs": [{**tensor, "parameters": {"binary_data_size": pixels.size}}]}
    head = json.dumps(binary).encode()
    infer = f"/v2/models/{name}/infer"
    as_json = {"Content-Type": "application/json"}
    outputs = [{"name": "label", "parameters": {"binary_data": False}}]
    tensor_document = {"id": "1", "inputs": [{**tensor, "data": pixels.ravel().tolist()}], "outputs": outputs}
    return [
        Sent("POST", "/v1/predict", {"Content-Type": "image/png"}, png.getvalue()),
        Sent(
            "POST",
            "/v1/predict",
            {"Content-Type": "multipart/form-data; boundary=B"},
            form + png.getvalue() + b"\r\n--B--\r\n",
        ),
        Sent("POST", "/v1/predict", as_json, b"", {"images": [base64.b64encode(png.getvalue()).decode()]}),
        Sent("POST", "/v1/predict", {"Content-Type": "application/x-npy"}, npy.getvalue()),
        Sent("POST", infer, as_json, b"", tensor_document),
        Sent("POST", infer, {"Inference-Header-Content-Length": str(len(head))}, head + pixels.tobytes()),
        Sent("POST", f"/v2/repository/models/{name}/load", as_json, b"", {"parameters": {"config": "{}"}}),
        Sent("GET", "/v1/model", {}, b""),
    ]


def mutated(sound: Sent, draw: random.Random) -> bytes:
    """A sound request, changed in one to three places."""
    sent = copy.deepcopy(sound)
    for _ in range(draw.randint(1, 3)):
        kind = draw.choice(("method", "path", "header", "document", "document", "bytes", "bytes", "shape"))
        if kind == "method":
            sent.method = draw.choice(
                ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "FOO", "post")
            )
        elif kind == "path":
            sent.path = draw.choice(PATHS)
        elif kind == "header":
            name, values = draw.choice(HEADERS)
            sent.headers[name] = draw.choice(values)
        elif kind == "document" and sent.document is not None:
            _change_value(sent.document, draw)
        elif kind == "shape":
            shape = repr(tuple(draw.choice((0, 1, True, -1, 8, 2**40)) for _ in range(draw.randint(0, 5))))
            sent.body = sent.body.replace(b"(1, ", shape.encode().rstrip(b")") + b", ", 1)
        else:
            sent.body = _change_bytes(sent.body, draw)
    return sent.raw()


def _change_value(document: Any, draw: random.Random) -> None:
    """Put something of another type at a random place of a JSON document."""
    while True:
        keys = list(document) if isinstance(document, dict) else list(range(len(document)))
        if not keys:
            return
        key = draw.choice(keys)
        if isinstance(document[key], dict | list) and document[key] and draw.random() < 0.7:
            document = document[key]
            continue
        document[key] = copy.deepcopy(draw.choice(VALUES))
        return


def _change_bytes(body: bytes, draw: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(draw.randint(1, 8)):
        if changed:
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed[: draw.randrange(len(changed) + 1)] if draw.random() < 0.3 else changed)


def ask(port: int, raw: bytes, seconds: float = ANSWER_SECONDS) -> int | str:
    """The status of the answer, or what came in its place."""
    try:
        with socket.create_connection((HOST, port), timeout=seconds) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR) if len(raw) % 7 == 0 else None
            line = connection.makefile("rb").readline()
    except TimeoutError:
        return "no answer"
    except OSError:
        return "closed"
    return int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else "closed" if not line else "no HTTP"


def fuzz(port: int, sound: list[Sent], requests: int, seed: int) -> Counter[int | str]:
    """Send changed requests, eight at a time."""
    answers: Counter[int | str] = Counter()
    lock, numbers = threading.Lock(), iter(range(requests))

    def work(worker: int) -> None:
        draw = random.Random(f"{seed}-{worker}")
        for _ in numbers:
            raw = mutated(draw.choice(sound), draw)
            status = ask(port, raw, 5.0)
            with lock:
                answers[status] += 1
                if status == 500:
                    print(f"500 for {raw[:400]!r}", flush=True)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def bombs() -> dict[str, Sent]:
    """Requests that are cheap to send and were dear to answer."""

    def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        return buffer.getvalue()

    large = encoded(Image.new("L", (4096, 4096), 128), "JPEG", progressive=True, quality=50)
    scan = large[large.rindex(b"\xff\xda") : -2]
    small_jpeg, small_png = (encoded(Image.new("RGB", (8, 8)), format) for format in ("JPEG", "PNG"))
    empty = struct.pack(">I", 0) + b"duCt" + struct.pack(">I", zlib.crc32(b"duCt"))
    rle = b"\xff\x00" * 40 + b"\x00\x01"
    rle_header = struct.pack("<IiiHHIIiiII", 40, 25_000_000, 1, 1, 8, 1, len(rle), 0, 0, 256, 0)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 4), dtype=np.uint8))
    images = {
        "JPEG of 28,000 scans": large[:-2] + scan * 28_000 + large[-2:],
        "JPEG of the 60 scans that are allowed, 16.8 MP": large[:-2] + scan * 50 + large[-2:],
        "JPEG of 4 million segments": small_jpeg[:2] + b"\xff\xe1\x00\x02" * 4_000_000 + small_jpeg[2:],
        "PNG of 1.3 million chunks": small_png[:33] + empty * 1_300_000 + small_png[33:],
        "BMP, run-length encoded, 25 MP": b"BM"
        + struct.pack("<IHHI", 1078 + len(rle), 0, 0, 1078)
        + rle_header
        + bytes(1024)
        + rle,
        "WebP with alpha, 24 MP": encoded(noise.resize((4900, 4900)), "WEBP", method=0),
    }
    documents = {
        "JSON of 2 million keys": b'{"images": [], '
        + b",".join(b'"%d":1' % n for n in range(1_000_000))
        + b"}",
        "JSON of 7 million numbers": b'{"images": [' + b",".join([b"1"] * 7_000_000) + b"]}",
        "JSON of brackets": b"[" * 14_000_000,
        "JSON of one number": b'{"images": ' + b"1" * 14_000_000 + b"}",
    }
    return {
        **{k: Sent("POST", "/v1/predict", {"Content-Type": "image/jpeg"}, v) for k, v in images.items()},
        **{
            k: Sent("POST", "/v1/predict", {"Content-Type": "application/json"}, v)
            for k, v in documents.items()
        },
    }


def latencies(port: int, sound: Sent, seconds: float) -> tuple[list[float], list[float], Counter[int | str]]:
    """Seconds that /livez and a small prediction took, one after the other, for so long."""
    live: list[float] = []
    predict: list[float] = []
    statuses: Counter[int | str] = Counter()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for raw, times in ((Sent("GET", "/livez", {}, b"").raw(), live), (sound.raw(), predict)):
            began = time.perf_counter()
            statuses[ask(port, raw)] += 1
            times.append(time.perf_counter() - began)
        time.sleep(0.02)
    return live, predict, statuses


def _row(name: str, times: list[float]) -> str:
    p50, p99 = np.quantile(times, [0.5, 0.99])
    return f"| {name} | {len(times)} | {1e3 * p50:.1f} | {1e3 * p99:.1f} | {1e3 * max(times):.1f} |"


def under_bombs(port: int, sound: Sent, seconds: float) -> None:
    """Both kinds of bombs, four of each at a time, while somebody else asks."""
    print("\n| asked for | times | p50 ms | p99 ms | max ms |\n|---|---|---|---|---|")
    live, predict, _ = latencies(port, sound, seconds / 2)
    print(_row("/livez, alone", live), _row("small prediction, alone", predict), sep="\n", flush=True)
    prepared = {name: sent.raw() for name, sent in bombs().items()}
    answers: dict[str, Counter[int | str]] = {name: Counter() for name in prepared}
    ended = threading.Event()

    def throw(names: list[str], number: int) -> None:
        while not ended.is_set():
            name = names[number % len(names)]
            answers[name][ask(port, prepared[name])] += 1
            number += 1

    images = [name for name in prepared if "JSON" not in name]
    documents = [name for name in prepared if "JSON" in name]
    threads = [
        threading.Thread(target=throw, args=(kind, n)) for kind in (images, documents) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    live, predict, statuses = latencies(port, sound, seconds)
    ended.set()
    for thread in threads:
        thread.join()
    print(_row("/livez, under bombs", live), _row("small prediction, under bombs", predict), sep="\n")
    print(f"\nAnswers to the sound requests meanwhile: {dict(statuses)}\n\n| bomb | answers |\n|---|---|")
    for name, counts in answers.items():
        print(f"| {name} | {', '.join(f'{count} x {status}' for status, count in counts.items())} |")


@contextmanager
def serving(model: Path) -> Iterator[int]:
    """A server on a free port; stopped at the end, and its exit code shown."""
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    ducat = Path(sys.executable).with_name("ducat")
    server = subprocess.Popen(
        [ducat, "serve", model, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while ask(port, Sent("GET", "/readyz", {}, b"").raw()) != 200:
            if server.poll() is not None:
                raise click.ClickException(f"the server ended with {server.returncode}")
            time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        print(f"\nThe server ended with exit code {server.wait(60)}.")


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--requests", default=12_000, show_default=True, help="Fuzzed requests.")
@click.option("--seconds", default=20.0, show_default=True, help="How long bombs are thrown.")
@click.option("--seed", default=0, show_default=True)
def main(model: Path, requests: int, seconds: float, seed: int) -> None:
    """Attack a server of MODEL."""
    sound = seeds(model.stem, Predictor(model, "cpu").spec)
    with serving(model) as port:
        for request in sound:
            print(f"sound {request.method} {request.path}: {ask(port, request.raw())}")
        answers = fuzz(port, sound, requests, seed)
        print(f"\n{requests:,} fuzzed requests, seed {seed}: {dict(answers.most_common())}")
        print(f"afterwards a sound request gets {ask(port, sound[0].raw())}")
        under_bombs(port, sound[0], seconds)
        time.sleep(1)
        connection = http.client.HTTPConnection(HOST, port, timeout=10)
        connection.request("GET", "/readyz")
        print(f"\n/readyz afterwards: {connection.getresponse().status}")


if __name__ == "__main__":
    main()
