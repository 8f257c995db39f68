"""`ducat serve` of what is no exported model: a checkpoint, a run folder, a folder with nothing to serve; and names."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ducat_serve.cli import on_the_fly
from ducat_serve.cli.main import run
from ducat_serve.cli.on_the_fly import exported
from ducat_serve.errors import DataError, DucatError, UsageError, VerificationError
from ducat_serve.output import Output
from service.models.repository import Repository
from service.server.process import bind
from tests.support.checkpoints import forged
from tests.support.model_repository import place


@pytest.fixture
def run_copy(run_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "my run"
    folder.mkdir()
    shutil.copy(run_folder / "model.safetensors", folder)
    return folder


class Exporter:
    """Stands for the process that exports: writes this model beside the checkpoint, or fails with ``code``."""

    def __init__(self, model: Path, code: int = 0) -> None:
        self.model, self.code = model, code
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        self.commands.append(command)
        if self.code == 0:
            out = command.index("--out") + 1 if "--out" in command else None
            shutil.copy(self.model, command[out] if out else Path(command[5]).with_name("model.onnx"))
        return subprocess.CompletedProcess(command, self.code)


def test_a_checkpoint_is_exported_once(
    run_copy: Path, onnx_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = Exporter(onnx_model)
    monkeypatch.setattr(on_the_fly.subprocess, "run", exporter)  # type: ignore[attr-defined]
    checkpoint, output = run_copy / "model.safetensors", Output(silent=True)
    assert exported(run_copy, output) == run_copy / "model.onnx"
    assert exported(checkpoint, output) == run_copy / "model.onnx"
    assert exported(run_copy, output) == run_copy / "model.onnx", "a folder that was exported before"
    [command] = exporter.commands
    assert command[3:] == [
        "ducat_serve",
        "export",
        str(checkpoint),
        "--out",
        f"{run_copy}/model.onnx",
        "--quiet",
    ]


def test_the_export_of_other_weights_in_the_folder_stays_as_it_is(
    run_copy: Path, onnx_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`last.safetensors` lies in every run folder beside the export of the best weights."""
    monkeypatch.setattr(on_the_fly.subprocess, "run", Exporter(onnx_model))  # type: ignore[attr-defined]
    last = (run_copy / "model.safetensors").rename(run_copy / "last.safetensors")
    (run_copy / "model.onnx").write_bytes(b"precious")
    assert exported(last, Output(silent=True)) == run_copy / "last.onnx"
    assert (run_copy / "last.onnx").read_bytes() == onnx_model.read_bytes()
    assert (run_copy / "model.onnx").read_bytes() == b"precious"


@pytest.mark.parametrize("given", [".", "model.safetensors"])
def test_an_export_of_another_checkpoint_is_neither_served_nor_replaced(
    given: str, run_copy: Path, other_model: Path
) -> None:
    shutil.copy(other_model, run_copy / "model.onnx")
    before = (run_copy / "model.onnx").read_bytes()
    with pytest.raises(VerificationError, match="another model") as error:
        exported(run_copy / given, Output(silent=True))
    assert f"'{run_copy}/model.onnx'" in str(error.value.next_step)
    assert (run_copy / "model.onnx").read_bytes() == before


@pytest.mark.parametrize("given", [".", "model.safetensors"])
def test_an_export_from_before_the_evaluation_is_served_and_called_that(
    given: str, run_copy: Path, measured_folder: Path, onnx_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(measured_folder / "model.safetensors", run_copy)
    shutil.copy(onnx_model, run_copy / "model.onnx")
    assert exported(run_copy / given, Output()) == run_copy / "model.onnx"
    said = capsys.readouterr().err
    assert "was exported before its report changed" in said
    again = f"ducat export '{run_copy}/model.safetensors' --out '{run_copy}/model.onnx'"
    assert said.rstrip().endswith(again)


def test_an_export_that_fails_keeps_its_exit_code(
    run_copy: Path, onnx_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_the_fly.subprocess, "run", Exporter(onnx_model, 3))  # type: ignore[attr-defined]
    with pytest.raises(DucatError, match="could not be exported") as error:
        exported(run_copy, Output(silent=True))
    assert error.value.exit_code == 3


def test_code_of_ones_own_is_exported_by_who_names_it(tmp_path: Path) -> None:
    path = tmp_path / "im p" / "model.safetensors"
    path.parent.mkdir()
    forged(path, {"weight": np.zeros(1, np.float32)}, network="nets:make")
    with pytest.raises(UsageError, match="somebody's own code") as error:
        exported(path.parent, Output(silent=True))
    command = f"ducat export '{path}' --out '{path.with_suffix('.onnx')}' --network nets:make"
    assert str(error.value.next_step).startswith(command)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("::1", "http://[::1]:39789"),
        ("[::1]", "http://[::1]:39789"),
        ("127.0.0.1", "http://127.0.0.1:39789"),
    ],
)
def test_the_address_that_is_printed_can_be_asked(
    host: str, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("service.server.process.bind", lambda *_: socket.socket())
    monkeypatch.setattr("service.server.process.ignore_sighup", lambda: None)
    monkeypatch.setattr("os.execve", lambda *_: None)
    assert run(["serve", "digits-small", "--host", host, "--port", "39789", "--json"]) == 0
    said = capsys.readouterr().out
    assert json.loads(said)["url"] == url
    assert said.count("\n") == 1, "the lines of the log follow"


def test_a_folder_with_nothing_to_serve_names_a_step_that_exists(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        Repository(tmp_path).find()
    assert "run/" not in str(error.value.next_step)
    assert "model.onnx" in str(error.value.next_step)


def test_a_bad_version_among_good_ones_says_how_to_start_without_it(
    onnx_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place(onnx_model, tmp_path, "digits", "2")
    bad = place(onnx_model, tmp_path, "digits", "3")
    bad.write_bytes(bad.read_bytes()[:1000])
    assert run(["serve", str(tmp_path), "--port", "39790"]) == 4
    said = " ".join(capsys.readouterr().err.split())
    aside = f"{bad.parent}.bad"
    assert f"mv {bad.parent} {aside} serves the others without it" in said
    bad.parent.rename(aside)
    assert list(Repository(tmp_path).find()["digits"]) == ["2"]


def test_one_model_is_called_as_asked(onnx_model: Path, tmp_path: Path) -> None:
    shutil.copy(onnx_model, tmp_path / "model.onnx")
    for path in (onnx_model, tmp_path):
        assert list(Repository(path, "cats-2").find()) == ["cats-2"]
        assert list(Repository(path).find()) == ["model"]
    with pytest.raises(UsageError, match="cannot name a model"):
        Repository(onnx_model, "a/b")
    (tmp_path / "models" / "cats" / "1").mkdir(parents=True)
    shutil.copy(onnx_model, tmp_path / "models" / "cats" / "1" / "model.onnx")
    with pytest.raises(UsageError, match="--name is for one model"):
        Repository(tmp_path / "models", "dogs").find()


def test_localhost_can_be_had_whatever_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    bind("localhost", 0).close()
    real = socket.getaddrinfo

    def only_ipv6(host: str, *rest: Any, **options: Any) -> Any:
        return real("::1" if host == "localhost" else host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", only_ipv6)
    with bind("localhost", 0) as bound:
        assert bound.family == socket.AF_INET6
    with pytest.raises(DucatError, match=r"Cannot listen on nowhere\.invalid"):
        bind("nowhere.invalid", 3000)


def test_no_address_is_printed_where_the_system_allows_too_few_open_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (100, 100))
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)
    monkeypatch.setattr("os.execve", lambda *_: pytest.fail("it went on"))
    assert run(["serve", "digits-small", "--port", "39789"]) == 1
    said = capsys.readouterr()
    assert "allows this process 100 open files" in said.err
    assert "Serving" not in said.out + said.err
