"""`ducat benchmark` and `ducat serve --auto`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import pytest

import ducat_serve.benchmark
from ducat_serve.benchmark import Configuration, Timing
from ducat_serve.bundled import model_path
from ducat_serve.cli.main import run
from tests.support.model_repository import place


@pytest.fixture(autouse=True)
def timings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is run: one thread gives 100 images per second and 8 images of a batch are as fast as 32."""

    def measured(
        runs: Mapping[Configuration, Callable[[], object]], *_: object, **__: object
    ) -> list[Timing]:
        return [Timing(given, (given.batch / (100.0 if given.batch >= 8 else 50.0),)) for given in runs]

    monkeypatch.setattr(ducat_serve.benchmark, "measure", measured)


def test_table_json_and_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["digits-small", str(model_path("digits-small", "onnx"))]
    assert run(["benchmark", *files, "--threads", "1", "--plot", str(tmp_path / "speed.svg"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [m["batch"] for m in printed["measurements"]] == [1, 2, 4, 8, 16, 32]
    assert printed["measurements"][3]["p50_ms"] == 80.0
    assert printed["proposals"] == [
        {"model": "digits-small.onnx", "provider": "CPUExecutionProvider", "threads": 1, "max_batch": 8}
    ]
    monkeypatch.setattr("ducat_serve.cli.commands.benchmark.usable_cpus", lambda: 1)
    assert "<svg" in (tmp_path / "speed.svg").read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["speed.png", "speed.svg"]
    assert run(["benchmark", "digits-small", "--threads", "1", "--batch", "4"]) == 0
    said = capsys.readouterr().out
    assert "images/s" in said
    assert "ducat serve digits-small --threads 1 --max-batch 4" in said
    assert said.startswith("1 usable CPU, "), "one is no plural"
    copy = shutil.copy(model_path("digits-small", "onnx"), tmp_path / "copy.onnx")
    assert run(["benchmark", str(copy), "--threads", "1", "--batch", "4"]) == 0
    assert f"ducat serve {copy} --threads 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["digits-small", "--batch", "0"], 2, "0 is not in the range"),
        (["digits-small", "--threads", "0"], 2, "0 is not in the range"),
        (["digits-small", "--plot", "."], 2, "names no file"),
        (["digits-small", "--plot", "model.safetensors/speed"], 1, "Cannot write"),
        ([], 2, "Missing argument"),
        (["missing.onnx"], 4, "missing.onnx"),
        (["broken.onnx"], 4, "broken.onnx"),
        (["model.safetensors"], 4, "is a checkpoint"),
    ],
)
def test_what_cannot_be_measured(
    arguments: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.onnx").write_bytes(b"x" * 200)
    Path("model.safetensors").write_bytes(b"x" * 200)
    before = sorted(tmp_path.iterdir())
    assert run(["benchmark", *arguments]) == code
    assert says in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_repository_of_several_models_is_called_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cats", "digits"):
        place(model_path("digits-small", "onnx"), Path("models"), name, "1")
    assert run(["benchmark", "models"]) == 2
    said = capsys.readouterr().err
    assert "models is a repository of models (2 of them)" in said
    command = "ducat benchmark models/cats/1/model.onnx models/digits/1/model.onnx"
    assert said.rstrip().endswith(command)
    assert run([*command.split()[1:], "--threads", "1", "--batch", "1"]) == 0


@pytest.mark.parametrize("command", [["benchmark", "--threads", "1", "--batch", "1"], ["bento"]])
def test_the_export_of_another_checkpoint_is_not_taken_for_its_folder(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "home"))
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    shutil.copy(model_path("digits-small", "onnx"), run_folder / "model.onnx")
    shutil.copy(model_path("cifar10-small", "safetensors"), run_folder / "model.safetensors")
    assert run([*command, str(run_folder)]) == 3
    said = capsys.readouterr().err
    assert (
        f"{run_folder}/model.onnx was exported from another model than {run_folder}/model.safetensors" in said
    )
    assert not (tmp_path / "home").exists()


class Started(BaseException):
    """Instead of the server; no Exception, which the command line would report."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables that the server would have been started with."""
    found: dict[str, str] = {}

    def execve(_program: str, _arguments: list[str], environment: dict[str, str]) -> NoReturn:
        found.update(environment)
        raise Started

    monkeypatch.setattr("os.execve", execve)
    monkeypatch.setattr("service.server.process.ignore_sighup", lambda: None)
    return found


@pytest.mark.parametrize(
    ("given", "threads", "batch"),
    [
        ([], "1", "8"),
        (["--deadline", "0.2"], "1", "1"),  # 8 images take 0.08 s: too long for three batches
        (["--max-batch", "32"], "1", "32"),
        (["--threads", "2", "--max-batch", "4"], "2", "4"),
    ],
)
def test_auto_chooses_what_is_not_given(
    given: list[str],
    threads: str,
    batch: str,
    started: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(Started):
        run(["serve", "digits-small", "--auto", "--port", "39517", *given])
    assert (started["DUCAT_SERVE_THREADS"], started["DUCAT_SERVE_MAX_BATCH"]) == (threads, batch)
    assert f"--auto: {threads} threads and batches of at most {batch}" in capsys.readouterr().err


def test_auto_chooses_for_one_model(
    tmp_path: Path, started: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        place(model_path("digits-small", "onnx"), tmp_path, name, "1")
    assert run(["serve", str(tmp_path), "--auto"]) == 2
    assert "--auto chooses for one model" in capsys.readouterr().err
    assert not started
