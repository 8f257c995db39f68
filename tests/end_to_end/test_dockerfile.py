"""The Dockerfile, without a Docker engine: its install steps are replayed and its command is run as it says."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import httpx
import pytest
from PIL import Image

from ducat_serve.predictor import Predictor

PROJECT = Path(__file__).parents[2]
DOCKERFILE = PROJECT / "Dockerfile"
TRAINING_ONLY = {"torch", "torchvision", "scikit-learn", "onnx", "onnxscript"}
replay = pytest.mark.xdist_group("replay")


class Instruction(NamedTuple):
    """One instruction: `COPY --from=builder a b` is ("COPY", {"from": "builder"}, "a b")."""

    name: str
    flags: dict[str, str]
    rest: str


def parse(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile, continuation lines joined, comments gone."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    instructions = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, rest = line.split(maxsplit=1)
        flags = {}
        while match := re.match(r"--([\w-]+)=(\S+)\s+", rest):
            flags[match[1]] = match[2]
            rest = rest[match.end() :]
        instructions.append(Instruction(name.upper(), flags, rest))
    return instructions


def is_ignored(path: PurePosixPath, patterns: list[str]) -> bool:
    """Whether .dockerignore keeps ``path`` from the build: the last pattern that fits it or a parent decides."""
    ignored = False
    names = [str(p) for p in (path, *path.parents[:-1])]
    for pattern in patterns:
        glob = re.escape(pattern.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(glob, name) for name in names):
            ignored = not pattern.startswith("!")
    return ignored


def dockerignore() -> list[str]:
    lines = (PROJECT / ".dockerignore").read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


class Container:
    """What the Dockerfile leaves in `root`, which stands for / of every stage, as far as Python goes.

    COPY, and each RUN that names pip or venv, are done; paths below the folders that the Dockerfile names
    are put below `root`. ENV, WORKDIR and ARG are kept for what follows.
    """

    def __init__(self, root: Path, instructions: list[Instruction], build_args: dict[str, str]) -> None:
        self.root = root
        self.build_args = build_args
        self.environment: dict[str, str] = {}
        self.folder = "/"
        self.last: dict[str, Instruction] = {}
        self._args: dict[str, str] = {}
        named = [i.rest for i in instructions if i.name == "WORKDIR"]
        named += [i.rest.split()[-1] for i in instructions if i.name == "COPY"]
        tops = {path.split("/")[1] for path in named if path.startswith("/")} | {"opt", "tmp"}
        self._paths = re.compile(rf"(?<![\w./])/(?=(?:{'|'.join(sorted(tops))})\b)")
        self._prepare_base()
        stages: dict[str, dict[str, str]] = {}
        for instruction in instructions:
            if instruction.name == "FROM":
                image, _, stage = instruction.rest.partition(" AS ")
                self.environment = dict(stages.get(image, {"PATH": f"{root}/usr/local/bin:/usr/bin:/bin"}))
                self.folder, self._args, self.last = "/", {}, {}
                stages[stage] = self.environment
            self._do(instruction)

    def inside(self, text: str) -> str:
        """``text`` with the container's paths put below `root`."""
        return self._paths.sub(f"{self.root}/", text)

    def _prepare_base(self) -> None:
        """The base image: a `python`, and a `pip` that must not be used, because no stage copies its work."""
        programs = self.root / "usr/local/bin"
        programs.mkdir(parents=True)
        (self.root / "tmp").mkdir()
        python = f"{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
        scripts = {"python": f'exec {shlex.quote(python)} "$@"', "pip": "echo 'not in /opt/venv' >&2; exit 1"}
        for name, script in scripts.items():
            (programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name).chmod(0o755)

    def _do(self, instruction: Instruction) -> None:
        name, flags, rest = instruction
        self.last[name] = instruction
        if name == "ARG":
            key, _, default = rest.partition("=")
            self._args[key] = self.build_args.get(key, default)
        elif name == "ENV":
            for pair in shlex.split(rest):
                key, _, value = pair.partition("=")
                value = string.Template(self.inside(value)).safe_substitute(self.environment)
                self.environment[key] = value
        elif name == "WORKDIR":
            self.folder = rest
            Path(self.inside(rest)).mkdir(parents=True, exist_ok=True)
        elif name == "COPY" and "from" in flags:
            source, target = rest.split()
            assert source == target, (
                "the stages share one folder here, so a stage can copy to the same path only"
            )
            assert Path(self.inside(source)).exists(), f"no stage made {source}"
        elif name == "COPY":
            self._copy(*rest.split())
        elif name == "RUN" and re.search(r"\b(pip|venv)\b", rest):
            self._run(rest)

    def _copy(self, *arguments: str) -> None:
        *sources, target = arguments
        destination = Path(self.inside(self.folder)) / self.inside(target)
        patterns = dockerignore()
        for source in sources:
            whole = PROJECT / source
            files = [whole] if whole.is_file() else [p for p in whole.rglob("*") if p.is_file()]
            into = destination / whole.name if whole.is_file() and target.endswith("/") else destination
            relative = {file: PurePosixPath(file.relative_to(PROJECT).as_posix()) for file in files}
            files = [file for file in files if not is_ignored(relative[file], patterns)]
            assert files, f"COPY {source}: no such thing, or .dockerignore keeps it out"
            for file in files:
                copy = into / file.relative_to(whole)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)

    def _run(self, command: str) -> None:
        # Of the developer's environment only what reaches the package index: proxies, certificates, pip's settings.
        kept = {
            k: v
            for k, v in os.environ.items()
            if re.match(r"HOME$|PIP_|.*(CERT|CA_BUNDLE)|.*_proxy$", k, re.I)
        }
        done = subprocess.run(
            ["/bin/sh", "-c", self.inside(command)],
            cwd=self.inside(self.folder),
            env={**kept, "PIP_COMPILE": "0", **self.environment, **self._args},  # byte code: half of the time
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"RUN {command}\n{done.stdout[-4000:]}"


@pytest.fixture(scope="module")
def instructions() -> list[Instruction]:
    return parse(DOCKERFILE.read_text())


@pytest.fixture(scope="module")
def container(
    instructions: list[Instruction], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    """The image for the CPU."""
    root = tmp_path_factory.mktemp("container")
    yield Container(root, instructions, {"RUNTIME": "cpu"})
    shutil.rmtree(root)  # some hundred megabytes, which pytest would keep for three runs


def of(instructions: list[Instruction], name: str) -> list[Instruction]:
    return [i for i in instructions if i.name == name]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_final_user_is_a_number_other_than_root(instructions: list[Instruction]) -> None:
    final = max(n for n, i in enumerate(instructions) if i.name == "FROM")
    users = of(instructions[final:], "USER")
    assert users
    assert int(users[-1].rest.split(":")[0]) > 0


def test_install_lines_name_no_training_library(instructions: list[Instruction]) -> None:
    lines = [i.rest for i in of(instructions, "RUN") if "pip" in i.rest]
    assert lines
    for line in lines:
        assert not re.search(r"torch|scikit-learn|onnxscript|\b(train|export|dev)\b", line), line


def test_gpu_is_the_default_and_versions_are_constrained(instructions: list[Instruction]) -> None:
    assert [i.rest for i in of(instructions, "ARG")] == ["RUNTIME=gpu"]
    install = [i.rest for i in of(instructions, "RUN") if "[serve,${RUNTIME}]" in i.rest]
    assert len(install) == 1
    assert "--constraint constraints.txt" in install[0]


def test_dependencies_are_installed_before_any_source_is_copied(instructions: list[Instruction]) -> None:
    install = next(n for n, i in enumerate(instructions) if "[serve,${RUNTIME}]" in i.rest)
    copied = {source for i in of(instructions[:install], "COPY") for source in i.rest.split()[:-1]}
    assert copied == {"pyproject.toml", "constraints.txt"}


def test_final_stage_copies_what_the_builder_made(instructions: list[Instruction]) -> None:
    """The replay's stages share a folder, so it would not miss these."""
    final = max(n for n, i in enumerate(instructions) if i.name == "FROM")
    copied = [i.rest.split()[0] for i in of(instructions[final:], "COPY") if i.flags == {"from": "builder"}]
    assert copied == ["/opt/venv", "/build/wheel"]


def test_command_healthcheck_and_expose_agree_on_the_port(instructions: list[Instruction]) -> None:
    assert [i.rest for i in of(instructions, "EXPOSE")] == ["3000"]
    command = json.loads(of(instructions, "CMD")[-1].rest)
    assert command[command.index("--port") + 1] == "3000"
    assert len(of(instructions, "HEALTHCHECK")) == 1
    assert "127.0.0.1:3000/readyz" in of(instructions, "HEALTHCHECK")[0].rest


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("pyproject.toml", False),
        ("service/page/static/index.html", False),
        ("training/recipes/digits.toml", False),
        ("training/data/digits.py", False),
        ("ducat_serve/cli/__pycache__/main.cpython-311.pyc", True),
        (".git/config", True),
        (".venv/bin/python", True),
        ("runs/paper/model.safetensors", True),
        ("tests/conftest.py", True),
    ],
)
def test_dockerignore_lets_only_the_wheels_content_through(path: str, expected: bool) -> None:
    assert is_ignored(PurePosixPath(path), dockerignore()) is expected


@pytest.mark.slow
@replay
def test_image_holds_no_training_library(container: Container) -> None:
    code = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    python = container.root / "opt/venv/bin/python"
    names = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    installed = {name.lower().replace("_", "-") for name in names.split()}
    assert {"ducat-serve", "bentoml", "onnxruntime"} <= installed
    assert not installed & TRAINING_ONLY


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The user's home folder; the image has none, so nothing may be written to it."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def environment(container: Container, home: Path) -> dict[str, str]:
    """What the server and the health check get, with two things that a platform may add and they must bear."""
    return {
        **container.environment,
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "DUCAT_SERVE_PORT": "tcp://10.0.0.1:3000",  # Kubernetes, for a Service named ducat-serve
        "http_proxy": "http://127.0.0.1:9",
    }


@pytest.fixture
def server(
    container: Container, environment: dict[str, str], onnx_model: Path, port: int, tmp_path: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """ENTRYPOINT and CMD at work, with the model, the host and the port replaced."""
    arguments = [*json.loads(container.last["ENTRYPOINT"].rest), *json.loads(container.last["CMD"].rest)]
    swaps = {"/models/model.onnx": str(onnx_model), "0.0.0.0": "127.0.0.1", "3000": str(port)}
    assert set(swaps) <= set(arguments)
    arguments = [swaps.get(argument, argument) for argument in arguments]
    program = shutil.which(arguments[0], path=environment["PATH"])
    assert program == str(container.root / "opt/venv/bin/ducat")
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *arguments[1:]],
            cwd=container.inside(container.folder),
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        yield process
        process.terminate()  # of a failed test
        try:
            process.wait(timeout=30)
        finally:
            process.kill()


@pytest.mark.slow
@replay
def test_command_serves_the_model_until_sigterm(
    container: Container,
    environment: dict[str, str],
    server: subprocess.Popen[bytes],
    onnx_model: Path,
    port: int,
    home: Path,
    tmp_path: Path,
) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
        deadline = time.monotonic() + 60
        while not _is_ready(client):
            log = (tmp_path / "server.log").read_text()
            assert server.poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.2)
        assert _healthcheck(container, environment, port) == 0
        assert client.get("/").headers["content-type"].startswith("text/html")  # the wheel has its data files

        png = io.BytesIO()
        Image.new("RGB", (32, 32), (200, 30, 60)).save(png, "PNG")
        answer = client.post("/v1/predict", files={"image": ("image.png", png.getvalue(), "image/png")})
        assert answer.status_code == 200, answer.text
        assert answer.json()["predictions"][0]["label"] in Predictor(onnx_model).spec.labels

    server.send_signal(signal.SIGTERM)
    server.wait(timeout=30)
    assert _healthcheck(container, environment, port) == 1
    assert not list(home.iterdir())  # ONNX Runtime's telemetry, for one, would leave a device id there


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _healthcheck(container: Container, environment: dict[str, str], port: int) -> int:
    """The exit code of the HEALTHCHECK command with the port replaced."""
    kind, _, command = container.last["HEALTHCHECK"].rest.partition(" ")
    assert kind == "CMD"
    arguments = json.loads(command.replace(":3000/", f":{port}/"))
    program = shutil.which(arguments[0], path=environment["PATH"])
    assert program is not None
    return subprocess.run([program, *arguments[1:]], env=environment, timeout=30).returncode
