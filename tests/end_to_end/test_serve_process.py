"""The real server: `ducat serve` in a process of its own, asked over a real socket. One for all tests here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.http
from PIL import Image
from tritonclient.utils import InferenceServerException

from ducat_serve.predictor import Predictor
from tests.support.server_process import WAIT, Server, free_port, running, serve_command
from training.data.digits import read_digits

MEMORY_LIMIT = 250e6  # bytes
HOSTILE = ("service", "training", "export", "ducat_serve")  # modules in the user's folder; ours must win
DIGITS = read_digits().test.images[:2]


@pytest.fixture(scope="module")
def server(onnx_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ready server, started from a folder full of modules that raise when they are imported."""
    folder = tmp_path_factory.mktemp("hostile")
    for name in HOSTILE:
        (folder / f"{name}.py").write_text("raise SystemExit('the wrong module was imported')\n")
    for number, image in enumerate(DIGITS):
        Image.fromarray(image).save(folder / f"{number}.png")
    (folder / "home").mkdir()
    with running(onnx_model, folder, HOME=str(folder / "home")) as one:
        yield one


def curl(server: Server, *arguments: str) -> str:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", str(WAIT), *arguments]
    done = subprocess.run(command, cwd=server.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("is_binary", [True, False])
def test_tritonclient_gets_the_models_own_answer(server: Server, onnx_model: Path, is_binary: bool) -> None:
    """The Open Inference Protocol as its best-known client speaks it."""
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.port}")
    name = onnx_model.stem
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(name)
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    declared = client.get_model_metadata(name)
    assert declared["inputs"][0]["shape"] == [-1, 8, 8, 3]
    for not_there in (client.get_model_config, client.get_inference_statistics):
        with pytest.raises(InferenceServerException, match="There is nothing at"):
            not_there("model")
    images = tritonclient.http.InferInput("images", list(DIGITS.shape), "UINT8")
    images.set_data_from_numpy(DIGITS, binary_data=is_binary)
    names = [output["name"] for output in declared["outputs"]]
    outputs = [tritonclient.http.InferRequestedOutput(n, binary_data=is_binary) for n in names]
    expected = Predictor(onnx_model)(DIGITS)
    for asked in (None, outputs):
        answer = client.infer(name, [images], outputs=asked, request_id="7")
        assert answer.get_response()["id"] == "7"
        for output in names:
            np.testing.assert_allclose(
                answer.as_numpy(output), getattr(expected, output), rtol=1e-5, atol=1e-6
            )
    client.close()


def test_curl_gets_the_models_own_prediction(server: Server, onnx_model: Path) -> None:
    answer = json.loads(curl(server, "-F", "image=@0.png", "-F", "image=@1.png", server.url + "/v1/predict"))
    predictor = Predictor(onnx_model, "cpu")
    expected = predictor(DIGITS)
    assert [entry["class_id"] for entry in answer["predictions"]] == expected.label.tolist()
    confidences = [entry["confidence"] for entry in answer["predictions"]]
    np.testing.assert_allclose(confidences, expected.probabilities.max(axis=1), rtol=1e-3)
    assert answer["model"]["weights_digest"] == predictor.spec.weights_digest


def test_large_body_with_and_without_its_length(server: Server) -> None:
    head = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    (server.folder / "large.bin").write_bytes(head + bytes(50_000_000))
    for header in ("Transfer-Encoding: chunked", "X-Length-Is: given"):
        answer = curl(
            server,
            *("-H", header, "-H", "Content-Type: multipart/form-data; boundary=B"),
            *("-w", "%{http_code}", "--data-binary", "@large.bin", server.url + "/v1/predict"),
        )
        assert answer.endswith("413")
        assert "body_too_large" in answer


def test_bad_image_over_the_wire(server: Server) -> None:
    (server.folder / "bad.png").write_bytes(b"text")
    answer = curl(server, "-w", "%{http_code}", "-F", "image=@bad.png", server.url + "/v1/predict")
    assert answer.endswith("400")
    assert json.loads(answer[:-3])["error"]["code"] == "invalid_image"


def test_an_upload_that_is_given_up_is_no_failure_of_the_server(server: Server) -> None:
    head = f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: 4321\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=B\r\n\r\n--B\r\n".encode())
    deadline = time.monotonic() + WAIT
    while "client_disconnected" not in server.log.read_text():  # logged when the request is over
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/", "<!doctype html>"),
        ("/livez", ""),
        ("/readyz", ""),
        ("/healthz", ""),
        ("/metrics", "ducat_model_info"),
        ("/v1/model", '"robustness not measured"'),
        ("/v2/health/ready", '"ready":true'),
    ],
)
def test_endpoint_answers(server: Server, path: str, content: str) -> None:
    response = server.get(path)
    assert response.status_code == 200
    assert content in response.text


def test_errors_pass_through_bentoml_unchanged(server: Server) -> None:
    for path, status, code in (
        ("/nope", 404, "not_found"),
        ("/docs.json", 404, "not_found"),
        ("/v1/predict", 405, "method_not_allowed"),
    ):
        response = server.get(path)
        assert response.status_code == status
        assert response.json()["error"]["code"] == code


def test_it_has_one_port_and_no_supervisor(server: Server) -> None:
    """The server and its two decoders: no other socket through which one could talk to any of them."""
    process, *decoders = server.all_processes()
    sockets = process.net_connections(kind="all")
    assert [one.laddr for one in sockets if one.status == psutil.CONN_LISTEN] == [("127.0.0.1", server.port)]
    named = [one for one in sockets if one.family == socket.AF_UNIX and one.laddr]
    assert named == []
    assert [decoder.cmdline()[-1] for decoder in decoders] == ["service.decoding.worker"] * 2
    assert [decoder.net_connections(kind="inet") for decoder in decoders] == [[], []]


def test_torch_is_not_loaded(server: Server) -> None:
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "onnxruntime" in maps  # so that the next line means something
    assert "/torch/" not in maps


def test_memory(server: Server) -> None:
    assert server.process.memory_info().rss < MEMORY_LIMIT


def failing_serve(model: Path, *options: str) -> tuple[int, str]:
    """Exit code and message of a `ducat serve` that must not start."""
    process = subprocess.Popen(
        serve_command(model, *options), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        return process.wait(WAIT), process.stderr.read()  # type: ignore[union-attr]
    finally:
        if process.poll() is None:  # it did start
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_port_in_use(server: Server, onnx_model: Path) -> None:
    code, message = failing_serve(onnx_model, "--port", str(server.port))
    assert code == 1
    assert f"Cannot listen on 127.0.0.1:{server.port}: Address already in use." in message
    assert f"--port {server.port + 1}" in message


def test_missing_model(tmp_path: Path) -> None:
    code, message = failing_serve(tmp_path / "nowhere.onnx", "--port", str(free_port()))
    assert code == 4
    assert "nowhere.onnx" in message


def test_garbage_model(tmp_path: Path) -> None:
    (tmp_path / "garbage.onnx").write_bytes(b"garbage" * 100)
    code, message = failing_serve(tmp_path / "garbage.onnx", "--port", str(free_port()))
    assert code == 4
    assert "garbage.onnx" in message


def test_cuda_without_a_gpu(onnx_model: Path) -> None:
    code, message = failing_serve(onnx_model, "--device", "cuda", "--port", str(free_port()))
    assert code == 1
    assert "--device cuda" in message


def test_an_address_that_is_not_ours(onnx_model: Path) -> None:
    code, message = failing_serve(onnx_model, "--host", "192.0.2.1", "--port", str(free_port()))
    assert code == 1
    assert "Cannot listen on 192.0.2.1:" in message
    assert "--host 127.0.0.1" in message


def test_sigterm_ends_it_and_nothing_is_left(server: Server) -> None:
    """The last test here: it ends the server of all the others."""
    server.process.terminate()
    assert server.process.wait(WAIT) == 0
    assert "Traceback" not in server.log.read_text()
    with pytest.raises(httpx.TransportError):
        server.get("/livez")
    assert list((server.folder / "home").iterdir()) == []
