"""A model repository in a real server: SIGHUP, and the client that people know from Triton."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import httpx
import psutil
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from ducat_serve.predictor import Predictor
from tests.support.http_client import GOOD
from tests.support.model_repository import place
from tests.support.server_process import WAIT, Server, free_port, running, serve_command

ADMIN = "m" * 32


def digest(server: Server, name: str) -> str:
    return str(server.get(f"/v1/model?model={name}").json()["spec"]["weights_digest"])


def log_says(server: Server, text: str) -> None:
    deadline = time.monotonic() + WAIT
    while text not in server.log.read_text():
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.02)


def test_sighup_while_the_server_starts_does_not_end_it(onnx_model: Path, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            serve_command(onnx_model, "--port", str(port)), stdout=output, stderr=subprocess.STDOUT
        )
    server = Server(psutil.Process(process.pid), port, tmp_path, log)
    deadline = time.monotonic() + WAIT
    try:
        while "service.server.process" not in server.process.cmdline():
            # `ducat serve` is still checking the model.
            assert process.poll() is None, log.read_text()
            time.sleep(0.005)
        while "is ready on" not in log.read_text():  # asking over HTTP would wait until it is
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            process.send_signal(signal.SIGHUP)
            time.sleep(0.05)
        assert server.is_ready()
    finally:
        process.kill()
        process.wait(WAIT)


def test_a_repository_is_reloaded_by_sighup_and_by_tritonclient(
    onnx_model: Path, other_model: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    file = place(onnx_model, repository, "paper", "1")
    place(other_model, repository, "plain", "1")
    new = Predictor(other_model).spec.weights_digest
    with running(repository, tmp_path, DUCAT_SERVE_ADMIN_KEY=ADMIN) as server:
        processes = server.all_processes()
        assert digest(server, "paper") != new
        shutil.copy(other_model, file)
        server.process.send_signal(signal.SIGHUP)  # to the process that `ducat serve` became
        log_says(server, "SIGHUP: every model was read again")
        assert digest(server, "paper") == new

        file.write_bytes(b"garbage")
        server.process.send_signal(signal.SIGHUP)
        log_says(server, "SIGHUP: Refused: paper. What was served stays")
        assert digest(server, "paper") == new
        answer = httpx.post(
            f"{server.url}/v1/predict?model=paper",
            content=GOOD,
            headers={"content-type": "image/png"},
            trust_env=False,
        )
        assert answer.status_code == 200
        assert server.all_processes() == processes, "none was started or replaced"

        client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.port}")
        key = {"Authorization": f"Bearer {ADMIN}"}
        with pytest.raises(InferenceServerException, match="was refused and the old one stays"):
            client.load_model("paper", headers=key)
        shutil.copy(onnx_model, file)
        client.load_model("paper", headers=key)
        assert digest(server, "paper") != new
        client.unload_model("plain", headers=key)
        assert not client.is_model_ready("plain")
        index = {one["name"]: one["state"] for one in client.get_model_repository_index(headers=key)}
        assert index == {"paper": "READY", "plain": "UNAVAILABLE"}
        with pytest.raises(InferenceServerException, match="Send the admin key"):
            client.load_model("paper")
        client.close()
