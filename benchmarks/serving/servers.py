"""Ours and its rivals, each with the same model and as many threads for one inference."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from serving.processes import Server

HERE = Path(__file__).parent
RIVALS = HERE / "rivals"
REQUIREMENTS = HERE / "requirements.txt"
PYTHON = [sys.executable, "-P"]


def ours(model: Path, threads: int, *options: str) -> Server:
    """`ducat serve` with its defaults: BentoML, metrics and request ids on."""
    serve = ["-m", "ducat_serve", "serve", str(model), "--threads", str(threads), "--port", "{port}"]
    return Server("ducat serve", [*PYTHON, *serve, *options], "/v1/predict")


def without_bentoml(model: Path, threads: int) -> Server:
    """Our Starlette application with its batcher, metrics and request ids, run by uvicorn alone."""
    settings = {"DUCAT_SERVE_MODEL": str(model), "DUCAT_SERVE_THREADS": str(threads)}
    command = [sys.executable, "-m", "uvicorn", "starlette_app:app", "--port", "{port}", *_QUIET]
    return Server("the same without BentoML", command, "/v1/predict", settings, RIVALS)


def with_layers(model: Path, threads: int, name: str, layers: str) -> Server:
    """Our application in a BentoML service with some of BentoML's own layers; see layers_app.py."""
    settings = {
        "DUCAT_SERVE_MODEL": str(model),
        "DUCAT_SERVE_THREADS": str(threads),
        "LAYERS": layers,
        "BENTOML_DO_NOT_TRACK": "True",
    }
    command = [
        *PYTHON,
        "-m",
        "bentoml",
        "serve",
        "layers_app:Layers",
        "--working-dir",
        str(HERE),
        "--port",
        "{port}",
    ]
    return Server(name, command, "/v1/predict", settings)


def fastapi(model: Path, threads: int, env: Path) -> Server:
    command = [str(env / "bin" / "uvicorn"), "fastapi_app:app", "--port", "{port}", *_QUIET]
    return Server("FastAPI", command, "/predict", _model(model, threads), RIVALS)


def litserve(model: Path, threads: int, env: Path) -> Server:
    command = [str(env / "bin" / "python"), "litserve_app.py", "{port}"]
    return Server("LitServe", command, "/predict", _model(model, threads), RIVALS)


def install_rivals(env: Path) -> None:
    """Make the rivals' environment where it is not there yet."""
    if (env / "bin" / "litserve").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", str(env)], check=True)
    subprocess.run(
        [str(env / "bin" / "pip"), "install", "--quiet", "-r", str(REQUIREMENTS)],
        check=True,
        stdout=sys.stderr,
    )


_QUIET = ["--log-level", "warning", "--no-access-log"]


def _model(model: Path, threads: int) -> dict[str, str]:
    return {"MODEL": str(model), "THREADS": str(threads)}
