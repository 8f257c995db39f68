"""How a server stops or dies, a clock that jumps, and no connection to anywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.fault_server import FaultyServer, ending, running
from tests.support.http_client import GOOD
from tests.support.server_process import WAIT, free_port, started

DAY = 86_400
FILES = {"image": ("a.png", GOOD, "image/png")}


def test_sigterm_under_load_loses_no_request(onnx_model: Path, tmp_path: Path) -> None:
    """It is not ready at once, answers everybody for a while, then lets nobody in and answers those who were."""
    with running(onnx_model, tmp_path, "--drain", "4") as server:
        refused, lost, answers = [], [], []
        draining, stop = threading.Event(), threading.Event()

        def ask(client: int) -> None:
            """Over one connection for as long as the server lets it, as clients do; no request is tried again."""
            with httpx.Client(trust_env=False, timeout=WAIT) as http:
                while not stop.is_set():
                    was_draining = draining.is_set()
                    try:
                        answers.append((was_draining, http.post(server.url + "/v1/predict", files=FILES)))
                    except httpx.ConnectError:  # it does not listen any more
                        refused.append(client)
                        return
                    except httpx.TransportError as error:
                        lost.append(error)

        idle, fresh = server.connect(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"), server.connect()
        assert idle.recv(15) == b"HTTP/1.1 200 OK"
        with ThreadPoolExecutor(6) as pool, ending(stop):
            load = [pool.submit(ask, client) for client in range(6)]
            server.until(lambda: len(answers) > 20, "no load")
            server.process.terminate()
            server.until(lambda: server.get("/readyz").status_code == 503, "it never said that it stops")
            draining.set()
            assert server.get("/v2/health/ready").json()["code"] == "stopping"
            assert server.get("/v2/models/model/ready").status_code == 503
            assert server.get("/livez").status_code == 200
            for client in load:
                client.result(WAIT)
        assert lost == []
        assert len(refused) == len(load)
        assert all(server.is_right(answer) for _, answer in answers)
        late = [answer for was_draining, answer in answers if was_draining]
        assert len(late) > len(load), "requests were answered while the server was not ready"
        assert {answer.headers.get("connection") for answer in late} == {"close"}
        assert server.process.wait(WAIT) == 0
        assert fresh.recv(1) == b""
        assert "Traceback" not in server.log.read_text()


def test_a_request_in_hand_is_answered_after_the_server_stopped_listening(
    onnx_model: Path, tmp_path: Path
) -> None:
    with running(onnx_model, tmp_path, "--drain", "0") as server, ThreadPoolExecutor(1) as pool:
        server.switch("hold", "")
        answer = pool.submit(server.predict)
        server.until(lambda: server.queued() == 1, "never queued")
        server.process.terminate()
        server.until(lambda: not accepts(server), "it listens on")
        server.switch("hold", None)
        assert server.is_right(answer.result(WAIT))


def accepts(server: FaultyServer) -> bool:
    try:
        server.connect().close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.fixture
def patient(onnx_model: Path, tmp_path: Path) -> Iterator[FaultyServer]:
    """A server that would drain for ten minutes, and has 300 images for a client and day."""
    with running(onnx_model, tmp_path, "--drain", "600", "--daily-budget", "300") as server:
        yield server


def test_a_clock_that_jumps_and_an_end_by_ctrl_c(patient: FaultyServer) -> None:
    """The budget comes back with a new day and never by going back; nothing else looks at the clock."""
    spend = [("image", ("a.png", GOOD, "image/png"))] * 100

    def code() -> str:
        answer = patient.post("/v1/predict", files=spend)
        return "ok" if answer.status_code == 200 else str(answer.json()["error"]["code"])

    patient.assert_good()
    for seconds, expected in (
        (0, ["ok", "ok", "budget_spent"]),
        (-3 * DAY, ["budget_spent"]),
        (3 * DAY, ["ok", "ok", "ok", "budget_spent"]),
        (0, ["budget_spent"]),
        (3650 * DAY, ["ok", "ok"]),
        (-3650 * DAY, []),
    ):
        patient.switch("clock", str(seconds))
        assert [code() for _ in expected] == expected, seconds
    patient.assert_good()

    patient.process.send_signal(signal.SIGINT)
    assert patient.process.wait(WAIT) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_inference_that_never_ends_does_not_keep_the_process(
    number: signal.Signals, onnx_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU that hangs: whatever runs the server is told to start it anew, and can."""
    monkeypatch.setenv("STALL_SECONDS", "1")
    with running(onnx_model, tmp_path, "--deadline", "1") as server:
        server.assert_good()
        server.switch("hold", "")
        server.until(lambda: server.predict().status_code == 503, "it never said that it hangs")
        assert server.get("/livez").status_code == 503
        server.process.send_signal(number)
        assert server.process.wait(WAIT) == 1
        log = server.log.read_text()
    assert log.count("an inference on CPUExecutionProvider has not ended") == 1
    assert "without the inference that does not end" in log
    assert "_faulty" in log, "the stack of the thread that hangs"


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_sigterm_or_ctrl_c_ends_the_drain(patient: FaultyServer, second: signal.Signals) -> None:
    """What is in hand is answered all the same."""
    patient.process.terminate()
    patient.until(lambda: patient.get("/readyz").status_code == 503, "it never said that it stops")
    patient.assert_good()
    patient.switch("hold", "")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(patient.predict)
        patient.until(lambda: patient.queued() == 1, "never queued")
        patient.process.send_signal(second)
        patient.until(lambda: not accepts(patient), "it listens on")
        patient.switch("hold", None)
        assert patient.is_right(answer.result(WAIT))
    assert patient.process.wait(WAIT) == 0


def test_a_server_that_is_killed_is_gone_and_can_be_started_again(onnx_model: Path, tmp_path: Path) -> None:
    """Nothing stays behind that keeps the port, and the exit code says that it should be started anew."""
    with running(onnx_model, tmp_path) as server:
        server.assert_good()
        idle, processes, command = server.connect(), server.all_processes(), server.process.cmdline()
        environment = server.process.environ()
        server.process.kill()
        assert server.process.wait(WAIT) == -signal.SIGKILL
        _, alive = psutil.wait_procs(processes, timeout=WAIT)
        assert alive == []
        assert not accepts(server)
        idle.close()
    with started(command, server.port, tmp_path, environment) as again:
        assert again.process.pid != server.process.pid
        server.assert_good()


def test_a_model_that_cannot_be_loaded_ends_the_server_with_a_code(tmp_path: Path) -> None:
    """As where the file breaks after `ducat serve` has looked at it. It would never be ready, so there is no drain."""
    (tmp_path / "model.onnx").write_bytes(b"garbage")
    settings = {"DUCAT_SERVE_MODEL": str(tmp_path / "model.onnx"), "DUCAT_SERVE_DRAIN": "600"}
    command = [sys.executable, "-P", "-m", "service.server.process", "--port", str(free_port())]
    done = subprocess.run(
        command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=WAIT, check=False
    )
    assert done.returncode == 1
    assert "The model cannot be served" in done.stdout


def namespace() -> list[str]:
    """The command that gives another one a network of its own."""
    for flags in (["--net"], ["--user", "--map-root-user", "--net"]):
        if subprocess.run(["unshare", *flags, "true"], capture_output=True, check=False).returncode == 0:
            return ["unshare", *flags]
    pytest.skip("this system allows no network namespaces; test_faults.py asks Python instead of the kernel")


def test_no_connection_to_anywhere(onnx_model: Path, tmp_path: Path) -> None:
    """In a network of its own, the kernel counts: whoever connects, looks up a name or sends a packet is seen."""
    script = [sys.executable, "-m", "tests.support.alone", str(onnx_model), str(tmp_path)]
    done = subprocess.run(
        [*namespace(), *script], capture_output=True, text=True, timeout=2 * WAIT, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    nothing = {"no_route": 0, "datagrams": 0}
    assert seen["server"] == {**nothing, "connections": seen["asked"]}, "only ours, to the server"
    assert seen["control"]["no_route"] >= 1, "a connection to the outside would have been seen"
    assert seen["control"]["datagrams"] >= 1, "and so would a look-up"
