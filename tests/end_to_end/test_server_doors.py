"""What a real server answers at its doors: names, spellings of paths, targets that are none, what is no request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ducat_serve.predictor import Predictor
from tests.support.fault_server import ADMIN, FaultyServer, head, trickle
from tests.support.fault_server import running as running_with_faults
from tests.support.http_client import GOOD
from tests.support.server_process import WAIT, Server, free_port, running, serve_command

KEY = "k" * 32
# Paths as they may stand in a request; some clients would tidy them up before they send them.
SPELLINGS = (
    *("/v1/predict", "//v1/predict", "///v1/predict", "/v1//predict", "/v1/predict/", "/V1/PREDICT"),
    *("/./v1/predict", "/v1/./predict", "/v1/../v1/predict", "/x/../v1/predict", "/samples/../v1/predict"),
    *("/%76%31/predict", "/v1%2fpredict", "/v1%2Fpredict", "/%2fv1/predict", "/%2e/v1/predict"),
    *("/v1/predict%00", "/v1/predict%20", "/v1/predict;x", "/v1/predict?x", "/v1/predict#x", "%2fv1/predict"),
    *("http://127.0.0.1/v1/predict", "http://other/v1/predict", "//127.0.0.1/v1/predict", "\\v1\\predict"),
    *("/v2/../v1/predict", "/livez/../v1/predict", "/readyz/v1/predict", "/%2576%2531/predict"),
    *(
        "/v2/models/model/infer",
        "//v2/models/model/infer",
        "/V2/models/model/infer",
        "/v2//models/model/infer",
    ),
    *("/%76%32/models/model/infer", "/v2%2fmodels%2fmodel%2finfer", "/v2/models/model/versions/1/infer"),
    *("/admin/reload", "//admin/reload", "/%61dmin/reload", "/v2/repository/index", "/v2//repository/index"),
)
NO_PATHS = ("*", "host:80", "http://other", "v1/model", "\\", "?", "#", "http:/v1/model")
PAGES_OF_BENTOML = (
    "/schema.json",
    "/docs.json",
    "/static_content/index.css",
    "/assets/index.js",
    "/task/status",
)


@pytest.fixture(scope="module")
def server(onnx_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServer]:
    """Without keys for clients, on 127.0.0.1."""
    folder = tmp_path_factory.mktemp("doors")
    with running_with_faults(onnx_model, folder, "--deadline", "1") as started:
        yield started


@pytest.fixture(scope="module")
def guarded(onnx_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServer]:
    """With a key and, to be seen in the log, a line for every request."""
    folder = tmp_path_factory.mktemp("guarded")
    settings = {"DUCAT_SERVE_API_KEYS": f"alice:{KEY}", "DUCAT_SERVE_ACCESS_LOG": "1"}
    with running(onnx_model, folder, **settings) as one:
        yield FaultyServer(one.process, one.port, folder, one.log, Predictor(onnx_model, "cpu"))


def answer(server: FaultyServer, request: bytes) -> bytes:
    [whole] = trickle([(server.connect(request), b"")])
    return whole


def asked(server: FaultyServer, method: str, target: str, host: str = "localhost") -> tuple[int, bytes]:
    """Status and body of the answer to a request for ``target`` as it stands, with an image."""
    extra = {"Host": host, "Content-Type": "image/png", "Connection": "close"}
    whole = answer(server, head(target, len(GOOD), method, **extra) + GOOD)
    return int(whole.split(b" ", 2)[1]), whole.partition(b"\r\n\r\n")[2]


def is_error(body: bytes) -> bool:
    """Whether it has the shape of all our errors, that of /v2 included."""
    document: Any = json.loads(body)
    if isinstance(document["error"], str):
        return set(document) == {"error", "code"}
    return set(document) == {"error"} and set(document["error"]) == {"code", "message"}


@pytest.mark.parametrize("target", SPELLINGS)
def test_no_spelling_of_a_path_leads_past_the_keys(guarded: FaultyServer, target: str) -> None:
    for method in ("POST", "GET", "OPTIONS"):
        status, body = asked(guarded, method, target)
        assert status in (400, 401, 404, 405), target
        assert is_error(body)
    assert b"predictions" not in asked(guarded, "POST", target)[1]


def test_with_the_key_the_right_spelling_does_lead_to_a_prediction(guarded: FaultyServer) -> None:
    """So that the test above means something."""
    request = head(
        "/v1/predict", len(GOOD), **{"Content-Type": "image/png", "X-API-Key": KEY, "Connection": "close"}
    )
    assert b"predictions" in answer(guarded, request + GOOD)


@pytest.mark.parametrize("target", [*NO_PATHS, *PAGES_OF_BENTOML])
def test_what_is_no_route_of_ours_is_an_error_of_ours(guarded: FaultyServer, target: str) -> None:
    for method in ("GET", "OPTIONS"):
        status, body = asked(guarded, method, target)
        assert status in (400, 404), target
        assert is_error(body)
        assert b"There is nothing at ." not in body


def test_an_asterisk_is_logged_like_any_other_request(guarded: FaultyServer) -> None:
    asked(guarded, "OPTIONS", "*")
    lines = [json.loads(line) for line in json_lines(guarded)]
    assert {"method": "OPTIONS", "path": "*", "status": 404}.items() <= lines[-1].items()


def json_lines(server: Server) -> list[str]:
    """Lines about requests; `ducat serve` itself has said a line for people before."""
    return [line for line in server.log.read_text().splitlines() if '"status"' in line]


def test_a_page_of_another_name_gets_nothing_from_a_local_server(server: FaultyServer) -> None:
    for host in ("evil.example", f"evil.example:{server.port}", "localhost.evil.example", ""):
        for target in ("/", "/v1/predict", "/schema.json", "*"):
            status, body = asked(server, "POST", target, host)
            assert status == 421, (host, target)
            assert is_error(body)
    whole = answer(server, b"GET / HTTP/1.0\r\n\r\n")
    assert whole.startswith(b"HTTP/1.1 421"), "no Host at all"
    for host in (f"localhost:{server.port}", f"127.0.0.1:{server.port}", "[::1]"):
        assert asked(server, "POST", "/v1/predict", host)[0] == 200
    assert asked(server, "GET", "/livez", "10.1.2.3")[0] == 200, "a prober asks for an address of its choice"


def counted(server: FaultyServer, sample: str) -> float:
    headers = {"Authorization": f"Bearer {ADMIN}"}
    text = httpx.get(f"{server.url}/metrics", headers=headers, trust_env=False, timeout=WAIT).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(sample))


@pytest.mark.parametrize(
    ("request_", "more", "status", "code"),
    [
        (b"\x16\x03\x01 hello\r\n\r\n", b"", 400, "malformed_request"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b"a", 408, "request_timeout"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 102, b"", 431, "head_too_large"),
    ],
)
def test_what_never_became_a_request_is_counted_and_logged(
    server: FaultyServer, request_: bytes, more: bytes, status: int, code: str
) -> None:
    names = (
        f'ducat_requests_total{{route="other",status="{status}"}}',
        f'ducat_rejects_total{{reason="{code}"}}',
    )
    before = [counted(server, name) for name in names]
    logged = len(json_lines(server))
    [whole] = trickle([(server.connect(request_), more)])
    assert whole.startswith(b"HTTP/1.1 %d" % status)
    assert [counted(server, name) for name in names] == [value + 1 for value in before]
    [line] = [json.loads(text) for text in json_lines(server)[logged:]]
    assert line.pop("seconds") >= 0
    request_id = line.pop("request_id")
    assert f"x-request-id: {request_id}\r\n".encode() in whole
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "ducat_serve.access",
        "status": status,
        "reason": code,
        "client": "127.0.0.1",
    }
    assert "Invalid HTTP request" not in server.log.read_text(), "one line for each is enough"


def test_a_server_with_hardly_any_open_files_does_not_start(onnx_model: Path) -> None:
    command = [
        "sh",
        "-c",
        'ulimit -n 128; exec "$@"',
        "sh",
        *serve_command(onnx_model, "--port", str(free_port())),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    assert done.returncode == 1
    assert "128 open files" in done.stderr
    assert "Next: raise the limit" in done.stderr


def test_a_home_that_cannot_be_written_is_not_missed(onnx_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with running(onnx_model, tmp_path, HOME=str(tmp_path / "file" / "home")) as server:
        assert server.get("/v1/model").status_code == 200
        assert "Traceback" not in server.log.read_text()


def test_an_open_port_is_named_at_the_start(onnx_model: Path, tmp_path: Path) -> None:
    with running(onnx_model, tmp_path, DUCAT_SERVE_HOST="0.0.0.0") as server:
        assert "everyone who reaches this port" in server.log.read_text()
        assert server.get("/v1/model").status_code == 200


@pytest.mark.parametrize(
    "variables", [{"DUCAT_SERVE_API_KEYS": ""}, {"DUCAT_SERVE_API_KEYS": " ,"}, {"DUCAT_SERVE_ADMIN_KEY": ""}]
)
def test_the_process_alone_refuses_an_empty_key_as_well(onnx_model: Path, variables: dict[str, str]) -> None:
    environment = {**os.environ, "DUCAT_SERVE_MODEL": str(onnx_model), **variables}
    command = [sys.executable, "-P", "-m", "service.server.process", "--port", str(free_port())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    [name] = variables
    assert name in done.stderr
