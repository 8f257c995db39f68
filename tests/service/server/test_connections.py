"""Our connections over a real socket: a request that asks for another protocol counts as if it had not asked."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator

import pytest

from ducat_serve.predictor import Predictor
from service.application import create_app
from tests.support.application import FakeModel
from tests.support.http_client import GOOD, WAIT
from tests.support.server_thread import listening

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(LIVE), LIVE)
# As Java's HttpClient and `curl --http2` ask, and as browsers do.
H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA\r\n"
WEBSOCKET = "Connection: Upgrade\r\nUpgrade: websocket\r\n"


@pytest.fixture(scope="module")
def port(predictor: Predictor) -> Iterator[int]:
    """Where our server listens, in a thread of this process."""
    models = FakeModel(predictor)
    with listening(create_app(models), models) as port:
        yield port


def post(length: str, upgrade: str, path: str = "/v1/predict", kind: str = "text/plain") -> bytes:
    lines = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n{upgrade}{length}\r\n\r\n"
    return lines.encode()


def answers(port: int, *segments: bytes, count: int = 1) -> list[tuple[int, bytes]]:
    """Status and body of ``count`` answers; the connection must not bring more."""
    with socket.create_connection(("127.0.0.1", port), WAIT) as connection:
        for segment in segments:
            connection.sendall(segment)
            time.sleep(0.02)  # so that the server reads them one by one
        stream = connection.makefile("rb")
        found = []
        for _ in range(count):
            status, length = int(stream.readline().split()[1]), 0
            while (line := stream.readline().lower()).strip():
                if line.startswith(b"content-length:"):
                    length = int(line.split()[1])
            found.append((status, stream.read(length)))
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            # Of the stream, which may have read a further answer with the last one.
            stream.read(1)
    return found


@pytest.mark.parametrize("upgrade", ["", H2C, WEBSOCKET])
@pytest.mark.parametrize(
    ("length", "body"),
    [
        (f"Content-Length: {len(LIVE)}", LIVE),
        ("Transfer-Encoding: chunked", CHUNKED),
    ],
)
def test_a_body_is_never_the_next_request(port: int, length: str, body: bytes, upgrade: str) -> None:
    head = post(length, upgrade, kind="application/x-npy")  # which is read before it is refused
    for segments in ((head + body,), (head, body), (head[:30], head[30:] + body[:9], body[9:])):
        [(status, _)] = answers(port, *segments)
        assert status == 400


@pytest.mark.parametrize("upgrade", ["", H2C, WEBSOCKET])
def test_what_is_sent_ahead_is_answered(port: int, upgrade: str) -> None:
    bare = f"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n{upgrade}\r\n".encode()
    with_body = post(f"Content-Length: {len(LIVE)}", upgrade) + LIVE
    empty = post("Content-Length: 0", upgrade)
    found = answers(port, bare + with_body + empty + LIVE, count=4)
    assert [status for status, _ in found] == [200, 415, 415, 200]


@pytest.mark.parametrize("upgrade", [H2C, WEBSOCKET])
def test_a_question_for_another_protocol_keeps_nobody_from_predicting(port: int, upgrade: str) -> None:
    head = post(f"Content-Length: {len(GOOD)}", upgrade, kind="image/png")
    for segments in ((head + GOOD,), (head, GOOD[:20], GOOD[20:])):
        [(status, body)] = answers(port, *segments)
        assert status == 200
        assert len(json.loads(body)["predictions"]) == 1


def test_no_client_chooses_the_address_in_the_log(port: int, caplog: pytest.LogCaptureFixture) -> None:
    forged = b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"
    with caplog.at_level(logging.INFO, "ducat_serve.access"):
        [(status, _)] = answers(port, forged)
    assert status == 404
    [line] = [record.getMessage() for record in caplog.records if "nowhere" in record.getMessage()]
    assert json.loads(line)["client"] == "127.0.0.1"


@pytest.mark.parametrize("length", ["Transfer-Encoding: gzip", "Transfer-Encoding: chunked, gzip"])
def test_a_body_of_no_known_end_is_refused(port: int, length: str) -> None:
    with socket.create_connection(("127.0.0.1", port), WAIT) as connection:
        connection.sendall(post(length, H2C) + LIVE)
        found = b"".join(iter(lambda: connection.recv(4096), b""))
    assert found.startswith(b"HTTP/1.1 400 ")
    assert found.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("path", ["/v1/predict", "/v2/models/model/infer"])
def test_a_body_that_does_not_come_is_the_client_s_fault(predictor: Predictor, path: str) -> None:
    """A 5xx would be counted against the server, and call somebody out of bed."""
    models = FakeModel(predictor, deadline=0.2)
    request = post("Content-Length: 1000", "", path, kind="image/png") + b"begun"
    with (
        listening(create_app(models), models) as port,
        socket.create_connection(("127.0.0.1", port), WAIT) as connection,
    ):
        connection.sendall(request)
        found = b"".join(iter(lambda: connection.recv(4096), b""))
    assert found.startswith(b"HTTP/1.1 408 ")
    assert b"body_timeout" in found


def test_a_connection_is_kept_between_two_requests_for_longer_than_a_deadline(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that sends a request on a connection which the server closes at that moment answers 502."""
    monkeypatch.setattr("service.server.server._SHORTEST_TIMEOUT", 0.1)
    models = FakeModel(predictor, deadline=0.1)
    with (
        listening(create_app(models), models) as port,
        socket.create_connection(("127.0.0.1", port), WAIT) as connection,
    ):
        for _ in range(2):
            connection.sendall(LIVE)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
            time.sleep(2.5)  # the server looks at its connections once a second


def test_a_connection_is_not_kept_for_ever(predictor: Predictor) -> None:
    models = FakeModel(predictor, keep_alive=0.5)
    with (
        listening(create_app(models), models) as port,
        socket.create_connection(("127.0.0.1", port), WAIT) as connection,
    ):
        connection.sendall(LIVE)
        found = b"".join(iter(lambda: connection.recv(4096), b""))
    assert found.startswith(b"HTTP/1.1 200 ")


HEAD = b"GET /v2/health/live HTTP/1.1\r\n"
HOST = b"Host: 127.0.0.1\r\n"


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (HEAD + HOST + b"X-Long: " + b"a" * 70_000 + b"\r\n\r\n", 431, "head_too_large"),
        (HEAD + HOST + (b"X-Long: " + b"a" * 7000 + b"\r\n") * 10 + b"\r\n", 431, "head_too_large"),
        (HEAD + b"\r\n", 400, "malformed_request"),
        (HEAD + HOST + HOST + b"\r\n", 400, "malformed_request"),
        (
            HEAD + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            501,
            "unsupported_transfer_encoding",
        ),
        (HEAD.replace(b"1.1", b"1.0") + b"\r\n", 200, ""),
    ],
)
def test_a_head_is_taken_as_the_standard_says_or_refused(
    port: int, request_: bytes, status: int, code: str
) -> None:
    """In one piece, so that the whole head is read at once."""
    with socket.create_connection(("127.0.0.1", port), WAIT) as connection:
        connection.sendall(request_)
        found = b"".join(iter(lambda: connection.recv(4096), b""))
    assert found.startswith(b"HTTP/1.1 %d " % status)
    assert found.count(b"HTTP/1.1 ") == 1
    assert code.encode() in found


@pytest.mark.parametrize(
    ("first", "is_of_the_protocol"),
    [
        (b"GET /v2/health/live HTTP/1.1\r\n", True),
        (b"GET /v2?x=1 HTTP/1.1\r\n", True),
        (b"POST /v1/predict HTTP/1.1\r\n", False),
        (b"GET /v2x HTTP/1.1\r\n", False),
    ],
)
def test_a_refused_head_has_the_error_of_its_path(port: int, first: bytes, is_of_the_protocol: bool) -> None:
    with socket.create_connection(("127.0.0.1", port), WAIT) as connection:
        connection.sendall(first + HOST + b"a: b\r\n" * 120 + b"\r\n")
        refusal = connection.makefile("rb").read()
    assert refusal.startswith(b"HTTP/1.1 431 ")
    assert is_error_of_the_protocol(refusal) == is_of_the_protocol


@pytest.mark.parametrize("before", [b"", LIVE])
def test_what_has_no_path_has_not_that_of_the_request_before_it(port: int, before: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), WAIT) as connection:
        connection.sendall(before)
        found = b""
        while before and not found.endswith(b"}"):
            found += connection.recv(4096)
        connection.sendall(b"\x00\r\n\r\n")
        refusal = connection.makefile("rb").read()
    assert refusal.startswith(b"HTTP/1.1 400 ")
    assert not is_error_of_the_protocol(refusal)


def is_error_of_the_protocol(answer: bytes) -> bool:
    return isinstance(json.loads(answer.partition(b"\r\n\r\n")[2])["error"], str)


def test_an_address_in_the_log_is_the_client_s_own_on_an_ipv6_socket_too(
    predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    models = FakeModel(predictor)
    with (
        caplog.at_level(logging.INFO, "ducat_serve.access"),
        listening(create_app(models), models, "::") as port,
    ):
        answers(port, b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    [line] = [record.getMessage() for record in caplog.records if "nowhere" in record.getMessage()]
    assert json.loads(line)["client"] == "127.0.0.1"


LARGE = 20 * 2**20  # more than a body may have


@pytest.mark.parametrize("length", ["Content-Length: 100", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize(("path", "status"), [("/v1/predict", 415), ("/nowhere", 404)])
def test_an_answer_before_the_whole_body_is_the_last_on_its_connection(
    port: int, path: str, status: int, length: str
) -> None:
    """What still comes would be parsed for nothing, which takes much longer than to send it."""
    with socket.create_connection(("127.0.0.1", port), WAIT) as connection:
        connection.sendall(post(length, "", path) + b"1\r\na\r\n")
        answer = connection.makefile("rb").read()
    assert int(answer.split()[1]) == status
    assert b"connection: close" in answer


def test_an_answer_after_the_whole_body_keeps_the_connection(port: int) -> None:
    request = post("Content-Length: 9", "") + b"123456789"
    found = answers(port, request, request, LIVE, count=3)
    assert [status for status, _ in found] == [415, 415, 200]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (post(f"Content-Length: {LARGE}", ""), 413),
        (post(f"Content-Length: {LARGE}", "Connection: close\r\n"), 413),
        (post(f"Content-Length: {LARGE // 2}", "Connection: close\r\n"), 415),
        (b"GET / HTTP/1.1\r\nX-Long: ", 431),
    ],
)
def test_who_is_still_sending_reads_why_it_was_refused(port: int, head: bytes, status: int) -> None:
    """As urllib does, and proxies of HTTP/1.0: all is sent, then the answer is read. A closed socket would reset it."""
    with socket.create_connection(("127.0.0.1", port), WAIT) as connection:
        connection.sendall(head + LARGE * b"a")
        answer = connection.makefile("rb").read()
    assert int(answer.split()[1]) == status
    assert b"connection: close" in answer


@pytest.mark.parametrize("connection_header", ["", "Connection: close\r\n"])
def test_who_never_stops_sending_is_cut_off(
    port: int, connection_header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.server.connections.LINGER", 0.2)
    head = post(f"Content-Length: {LARGE}", connection_header)
    with socket.create_connection(("127.0.0.1", port), WAIT) as connection:
        connection.sendall(head)
        assert int(connection.makefile("rb").read().split()[1]) == 413
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(100):
                time.sleep(0.02)
                connection.sendall(b"a")


def test_no_more_is_read_of_who_sends_too_much(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.server.connections.LINGER", WAIT)
    monkeypatch.setattr("service.server.connections.LINGER_BYTES", 2**20)
    with socket.create_connection(("127.0.0.1", port), WAIT) as connection:
        connection.sendall(post("Transfer-Encoding: chunked", ""))
        assert int(connection.makefile("rb").read().split()[1]) == 415
        connection.settimeout(1)
        with pytest.raises(TimeoutError):  # the buffers of the system are full
            connection.sendall(10 * LARGE * b"a")


@pytest.mark.parametrize("size", [1, 15])
def test_a_body_in_very_small_chunks_is_refused(port: int, size: int) -> None:
    """A few clients could keep the parser busy for everybody, whether or not their bodies are wanted."""
    chunk = b"%x\r\n%s\r\n" % (size, size * b"a")
    with socket.create_connection(("127.0.0.1", port), WAIT) as connection:
        connection.sendall(post("Transfer-Encoding: chunked", "", kind="image/png") + 1001 * chunk)
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"chunks_too_small" in answer


def test_small_chunks_are_taken_where_they_are_few_or_not_as_small(port: int) -> None:
    head = post("Transfer-Encoding: chunked", "", kind="application/x-npy")
    for chunks in (1000 * b"1\r\na\r\n", 3000 * (b"10\r\n" + 16 * b"a" + b"\r\n")):
        [(status, body)] = answers(port, head + chunks + b"0\r\n\r\n")
        assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_npy")


def test_what_was_asked_before_a_refusal_is_left_without_a_word(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """An answer that comes later would be written behind the end of what the connection says."""
    bare = post("Content-Length: 9", "")
    with socket.create_connection(("127.0.0.1", port), WAIT) as connection:
        connection.sendall(bare + b"123456789" + b"no HTTP\r\n\r\n")
        answer = connection.makefile("rb").read()
        time.sleep(0.2)
    assert answer.startswith(b"HTTP/1.1 400")
    assert not [record for record in caplog.records if record.exc_info]
