"""The Dockerfile, without a Docker engine: what it says, and a replay of what it installs, starts and asks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from ducat_serve.predictor import Predictor
from tests.support.http_client import GOOD
from tests.support.server_process import WAIT, free_port, started

PROJECT = Path(__file__).parents[2]
# One instruction a line: comments gone, continuation lines joined. hadolint (`make lint`) reads the syntax.
DOCKERFILE = re.sub(r"^#.*\n|\\\n *", "", (PROJECT / "Dockerfile").read_text(), flags=re.MULTILINE)
WHEEL = {"LICENSE", "README.md", "pyproject.toml", "ducat_serve", "export", "service", "training"}
TRAINING_ONLY = {"torch", "torchvision", "scikit-learn", "onnx", "onnxscript"}


def said(instruction: str) -> list[str]:
    """What follows each ``instruction``, in order."""
    return re.findall(rf"^{instruction} +(.*)$", DOCKERFILE, re.MULTILINE)


def test_base_is_pinned_and_the_user_is_a_number_other_than_root() -> None:
    assert re.fullmatch(
        r"python:3\.\d+-slim-[a-z]+ AS base\nbase AS dependencies\ndependencies AS builder\nbase",
        "\n".join(said("FROM")),
    )
    assert said("USER") == ["10001:10001"]
    assert DOCKERFILE.index("\nUSER ") > DOCKERFILE.rindex("\nFROM ")


def test_build_gets_the_wheels_content_and_nothing_else() -> None:
    ignored = [
        line for line in (PROJECT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")
    ]
    copied = {source for line in said("COPY") if "--from" not in line for source in line.split()[:-1]}
    assert ignored[0] == "*"
    assert ignored[-1] == "**/__pycache__"
    assert {line.removeprefix("!") for line in ignored[1:-1]} == copied == WHEEL | {"constraints.txt"}
    assert all((PROJECT / name).exists() for name in copied)


def test_dependencies_are_pinned_come_first_and_include_no_training() -> None:
    before, install, after = DOCKERFILE.partition('--constraint constraints.txt ".[serve,sign,${RUNTIME}]"')
    assert install
    assert said("ARG") == ["RUNTIME=gpu"]
    assert "COPY ducat_serve" not in before
    copied = re.findall(r"^COPY --from=(\S+ \S+ \S+)", after, re.MULTILINE)
    assert copied == ["dependencies /opt/venv /opt/venv", "builder /build/project /opt/venv"]
    pip = [line for line in said("RUN") if "pip" in line]
    assert not re.search(r"torch|scikit-learn|onnxscript|\b(train|export|dev)\b", "\n".join(pip))


@pytest.mark.slow
@pytest.mark.extended
def test_what_it_installs_serves_a_model_without_torch(onnx_model: Path, tmp_path: Path) -> None:
    source, venv, home, port = tmp_path / "source", tmp_path / "venv", tmp_path / "home", free_port()
    home.mkdir()
    source.mkdir()
    for name in WHEEL:
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", venv], check=True, timeout=300)
    pip, pins = str(venv / "bin/pip"), str(PROJECT / "constraints.txt")
    install = [pip, "install", "--quiet", "--no-compile", "--constraint", pins, ".[serve,sign,cpu]"]
    subprocess.run(install, cwd=source, check=True, timeout=300)
    listed = subprocess.check_output([pip, "list", "--format=json"], timeout=300)
    names = {package["name"].lower().replace("_", "-") for package in json.loads(listed)}
    assert {"ducat-serve", "bentoml", "model-signing", "onnxruntime"} <= names
    assert not names & TRAINING_ONLY

    variables = {
        **dict(re.findall(r"(\w+)=(\S+)", said("ENV")[0])),
        "PATH": f"{venv}/bin:/usr/bin:/bin",
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "DUCAT_SERVE_PORT": "tcp://10.0.0.1:3000",  # Kubernetes sets this for a Service named ducat-serve
        "http_proxy": "http://127.0.0.1:9",
    }
    swaps = {"/models/model.onnx": str(onnx_model), "0.0.0.0": "127.0.0.1", "3000": str(port)}
    command = [*json.loads(said("ENTRYPOINT")[0]), *json.loads(said("CMD")[0])]
    assert command[:2] == ["ducat", "serve"]
    assert set(swaps) < set(command)
    assert said("EXPOSE") == ["3000"]
    command = [str(venv / "bin/ducat"), *(swaps.get(word, word) for word in command[1:])]
    check = said("HEALTHCHECK")[0].partition("CMD ")[2].replace(":3000/", f":{port}/")
    healthcheck = [str(venv / "bin/python"), *json.loads(check)[1:]]

    with started(command, port, tmp_path, variables) as server:
        assert subprocess.run(healthcheck, env=variables, timeout=WAIT).returncode == 0
        assert server.get("/").headers["content-type"].startswith("text/html")  # the wheel has its data files
        files = {"image": ("image.png", GOOD)}
        answer = httpx.post(f"{server.url}/v1/predict", files=files, trust_env=False, timeout=WAIT)
        assert answer.json()["predictions"][0]["label"] in Predictor(onnx_model).spec.labels
        server.process.terminate()
        server.process.wait(WAIT)
    assert subprocess.run(healthcheck, env=variables, timeout=WAIT).returncode == 1
    assert not list(home.iterdir())  # ONNX Runtime's telemetry, for one, would leave a device id there
