"""Faults in a real server, one after the other; after each the next good request is answered correctly."""

from __future__ import annotations

import contextlib
import resource
import select
import shutil
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.support.fault_server import UPLOAD, FaultyServer, error_code, head, running, trickle
from tests.support.http_client import encode, part
from tests.support.server_process import WAIT

PLACES = 12  # --max-queue
MAX_BODY = 4 * 2**20
DEADLINE = 5
# Soft and hard limit of open files; the server keeps 128 for other things than connections.
FILES = (256, 1200)
GARBAGE = b"garbage" * 1000
MODEL_PLEASE = b"GET /v1/model HTTP/1.1\r\nHost: localhost\r\n\r\n"
BEGUN = part(b"")[:-2]  # an upload as far as its first byte
FAULT = "RuntimeError: the fault that was asked for"


@pytest.fixture(scope="module")
def model(onnx_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copy(onnx_model, tmp_path_factory.mktemp("model") / "model.onnx"))


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServer]:
    """One server for all tests here: whatever is done to it, it goes on."""
    folder = tmp_path_factory.mktemp("faults")
    limits = {
        "deadline": DEADLINE,
        "keep-alive": DEADLINE,
        "max-images": PLACES,
        "max-queue": PLACES,
        "max-body": MAX_BODY,
    }
    options = [text for name, value in limits.items() for text in (f"--{name}", str(value))]
    with running(model, folder, *options, files=FILES) as started:
        yield started


@pytest.fixture(autouse=True)
def _next_good_request(server: FaultyServer) -> Iterator[None]:
    """What every test here ends with: nothing is left of the fault."""
    yield
    server.switch("hold", None)  # still there where a test failed
    server.assert_good()
    log = server.log.read_text()
    assert log.count("Traceback") == log.count(FAULT)


def test_heads_that_never_end(server: FaultyServer) -> None:
    """Silent, cut off, a byte at a time, and empty lines for ever after an answer."""
    answers = trickle(
        [
            (server.connect(), b""),
            (server.connect(b"GET /v1/mo"), b""),
            (server.connect(b"GET /v1/model HTTP/1.1\r\nX-Slow: "), b"a"),
            (server.connect(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"), b"\r\n"),
        ]
    )
    assert answers[0] == b""
    assert [error_code(answer) for answer in answers[1:3]] == ["request_timeout"] * 2
    assert answers[3].startswith(b"HTTP/1.1 200")
    assert answers[3].count(b"HTTP/1.1") == 1


def test_heads_and_trailers_without_a_bound(server: FaultyServer) -> None:
    line, start = b"a" * 1000, b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"
    chunks = b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
    hostile = [
        (b"GET /", line),
        (start + b"X-One: ", line),
        (start, b"X-Many: " + line + b"\r\n"),
        (start + chunks + b"1;", line),
        (start + chunks + b"0\r\n", b"X-Many: " + line + b"\r\n"),
    ]
    answers = trickle([(server.connect(first), more) for first, more in hostile], every=0.001)
    # The reset that follows data nobody read may overtake the answer.
    assert {error_code(answer) for answer in answers if answer} <= {"head_too_large"}


def test_many_small_fields_cost_no_memory(server: FaultyServer) -> None:
    """Behind a body as large as one may be as well, where each line would otherwise be kept."""
    line = b"a:\r\n" * 10_000
    start = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\n"
    body = MAX_BODY - 1
    chunk = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % body + bytes(body) + b"\r\n0\r\n"
    reset = Path(f"/proc/{server.process.pid}/clear_refs")
    reset.write_text("5")  # the highest figure so far is forgotten
    before = server.process.memory_info().rss
    for first in (start, start + chunk):
        connection = server.connect(first)
        with contextlib.suppress(ConnectionError):  # it is cut off
            for _ in range(200):
                connection.sendall(line)
        connection.close()
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    assert int(status.split("VmHWM:")[1].split()[0]) * 1024 - before < 60e6


def test_too_many_fields_are_refused_in_words(server: FaultyServer) -> None:
    connection = server.connect(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 101)
    answer = b""
    while not answer.endswith(b"}"):
        piece = connection.recv(65536)
        assert piece, answer
        answer += piece
    assert answer.startswith(b"HTTP/1.1 431")
    assert error_code(answer) == "head_too_large"
    connection.close()


def test_what_is_no_http_gets_an_error_like_any_other(server: FaultyServer) -> None:
    (answer,) = trickle([(server.connect(b"\x16\x03\x01 hello\r\n\r\n"), b"")])
    assert answer.startswith(b"HTTP/1.1 400")
    assert error_code(answer) == "malformed_request"


def test_bodies_that_never_end(server: FaultyServer) -> None:
    """They hold every place until their deadline, and not longer."""
    paths = ["/v1/predict", "/v2/models/model/infer"] * (PLACES // 2)
    clients = [(server.connect(head(path, 1000, Connection="close") + BEGUN), b"-") for path in paths]
    server.until(lambda: server.predict().status_code == 429, "the places were never taken")
    others = ["/admin/reload", "/nope", "/", "/readyz"]
    clients += [(server.connect(head(path, 1000, Connection="close") + b"-"), b"-") for path in others]
    answers = trickle(clients)
    assert [error_code(answer) for answer in answers[:PLACES]] == ["body_timeout"] * PLACES
    assert all(answer.startswith(b"HTTP/1.1 4") for answer in answers[PLACES:]), "answered without the body"


def test_a_client_that_never_reads(server: FaultyServer) -> None:
    """It asks again and again: when its answers fill every buffer on the way we stop reading, and cut it off."""
    # So large that no more of them than may be sent ahead come in one piece.
    request, sent = MODEL_PLEASE[:-2] + b"X-Pad: " + b"a" * 4000 + b"\r\n\r\n", 0
    with server.connect() as deaf:
        port = deaf.getsockname()[1]
        deaf.settimeout(1)
        with contextlib.suppress(TimeoutError):
            while sent < 1e9:
                sent += deaf.send(request)
        assert sent < 1e9, "the server reads on for ever"
        server.until(lambda: port not in remote_ports(server), "the server waits for ever")


def test_requests_upon_requests_without_waiting_for_an_answer(server: FaultyServer) -> None:
    """Some are taken, in order. More are not, whether the client reads its answers or not."""
    some, many = trickle([(server.connect(MODEL_PLEASE * count), b"") for count in (50, 1000)])
    assert some.count(b"HTTP/1.1 200 OK") == 50
    assert many.count(b"HTTP/1.1 200 OK") < 1000
    before = server.process.memory_info().rss
    with server.connect() as hasty:
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 100e6:
                sent += hasty.send(MODEL_PLEASE * 1000)
    assert sent < 100e6, "the server reads on for ever"
    assert server.process.memory_info().rss - before < 50e6


def remote_ports(server: FaultyServer) -> set[int]:
    return {connection.raddr.port for connection in server.process.net_connections() if connection.raddr}


def test_half_closed_clients(server: FaultyServer) -> None:
    """A client that shuts its writing side has left: its connection ends cleanly, with a whole answer or with none."""
    request = head("/v1/predict", len(UPLOAD)) + UPLOAD
    server.switch("hold", "")
    waiting = server.connect(request)
    server.until(lambda: server.queued() == 1, "never queued")
    waiting.shutdown(socket.SHUT_WR)
    (answer,) = trickle([(waiting, b"")])
    server.switch("hold", None)
    assert answer == b""
    for sent in (request[:10], request[:-5]):
        half = server.connect(sent)
        half.shutdown(socket.SHUT_WR)
        assert trickle([(half, b"")]) == [b""]


def test_clients_that_leave_in_the_middle_of_an_upload(server: FaultyServer) -> None:
    clients = [server.connect(head("/v1/predict", MAX_BODY) + BEGUN + bytes(100_000)) for _ in range(PLACES)]
    server.until(lambda: server.predict().status_code == 429, "the places were never taken")
    for client in clients:  # reset, not closed
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    server.until(lambda: server.predict().status_code == 200, "the places were never free again")


def test_large_bodies_together_are_bounded(server: FaultyServer) -> None:
    """Eight of the largest at a time; the ninth is refused when its bytes come, and nothing of them stays."""
    begun = head("/v1/predict", MAX_BODY) + BEGUN
    with contextlib.ExitStack() as open_clients:
        clients = [server.connect(begun + bytes(MAX_BODY - len(BEGUN) - 1)) for _ in range(9)]
        for client in clients:
            open_clients.callback(client.close)
        (refused, *_), _, _ = select.select(clients, [], [], WAIT)
        answer = b""
        while not answer.endswith(b"}}"):
            piece = refused.recv(65536)
            assert piece, answer
            answer += piece
        assert answer.startswith(b"HTTP/1.1 429")
        assert b"Too many large bodies" in answer
    server.until(lambda: server.predict().status_code == 200, "their memory was never free again")


def test_a_model_file_that_is_replaced_by_garbage_or_deleted(server: FaultyServer, model: Path) -> None:
    whole = model.read_bytes()
    try:
        model.write_bytes(GARBAGE)
        server.assert_good()
        assert server.reload().json()["error"]["code"] == "model_refused"
        server.assert_good()
        model.unlink()
        assert server.reload().json()["error"]["code"] == "model_refused"
        server.assert_good()
    finally:
        model.write_bytes(whole)
    assert server.reload().status_code == 200


def test_a_full_disk(server: FaultyServer) -> None:
    """No file of the server can grow, as where a disk is full; large uploads never needed one."""
    used = server.log.stat().st_size
    server.process.rlimit(psutil.RLIMIT_FSIZE, (used + 100_000, resource.RLIM_INFINITY))
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    large = encode(noise)
    assert 2 * 2**20 < len(large) < MAX_BODY
    files = {"image": ("a.png", large, "image/png")}
    response = server.post("/v1/predict", files=files)
    server.process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert response.status_code == 200, response.text


def test_idle_connections_more_than_there_is_room_for(server: FaultyServer) -> None:
    """A thousand are kept and closed in the end; of more than fit, those that were silent for longest go at once."""
    most = FILES[1] - 128
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        idle = [server.connect() for _ in range(1000)]
        server.assert_good()
        idle += [server.connect() for _ in range(most - 1000 + 100)]
        server.assert_good()
        assert len(remote_ports(server)) <= most
        assert [c.recv(1) for c in idle[:50]] == [b""] * 50
        assert trickle([(c, b"") for c in idle[50:]]) == [b""] * (len(idle) - 50)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    server.until(lambda: remote_ports(server) == set(), "idle connections stay")


def test_an_inference_that_raises(server: FaultyServer) -> None:
    """Alone it is a 500; in a batch with others, they are tried one by one."""
    server.switch("raise", "0")
    response = server.predict()
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    server.assert_good()
    server.switch("hold", "")
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(server.predict)
        server.until(lambda: server.queued() == 1, "never queued")
        others = [pool.submit(server.predict) for _ in range(3)]
        server.until(lambda: server.queued() == 4, "never queued")
        server.switch("raise", "1")
        server.switch("hold", None)
        assert all(server.is_right(answer.result(WAIT)) for answer in (first, *others))
    assert not (server.folder / "raise").exists(), "the batch did raise"


def test_python_never_connected_to_anything(server: FaultyServer) -> None:
    """The last test here: in all that was done to it the server never opened a connection nor looked up a name."""
    fetch_me = {"image": (None, "http://192.0.2.1/a.png")}
    assert server.post("/v1/predict", files=fetch_me).json()["error"]["code"] == "not_a_file"
    assert (server.folder / "connections").read_text() == ""
