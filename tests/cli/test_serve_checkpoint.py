"""`ducat serve` of what is no exported model: a checkpoint, a run folder, a folder with nothing to serve; and names."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ducat_serve.cli import on_the_fly
from ducat_serve.cli.on_the_fly import exported
from ducat_serve.errors import DataError, DucatError, UsageError, VerificationError
from ducat_serve.output import Output
from service.models.repository import Repository
from service.server.process import bind


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
            shutil.copy(self.model, Path(command[5]).with_suffix(".onnx"))
        return subprocess.CompletedProcess(command, self.code)


def test_a_checkpoint_is_exported_once(
    run_copy: Path, onnx_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = Exporter(onnx_model)
    monkeypatch.setattr(on_the_fly.subprocess, "run", exporter)  # type: ignore[attr-defined]
    checkpoint, output = run_copy / "model.safetensors", Output(silent=True)
    assert exported(run_copy, output) == run_copy / "model.onnx"
    assert exported(checkpoint, output) == run_copy / "model.onnx"
    assert exported(run_copy, output) == run_copy, "it has something to serve now"
    [command] = exporter.commands
    assert command[3:] == ["ducat_serve", "export", str(checkpoint), "--quiet"]


def test_an_export_of_another_checkpoint_is_neither_served_nor_replaced(
    run_copy: Path, other_model: Path
) -> None:
    shutil.copy(other_model, run_copy / "model.onnx")
    before = (run_copy / "model.onnx").read_bytes()
    with pytest.raises(VerificationError, match="another checkpoint") as error:
        exported(run_copy / "model.safetensors", Output(silent=True))
    assert f"'{run_copy}/model.onnx'" in str(error.value.next_step)
    assert (run_copy / "model.onnx").read_bytes() == before


def test_an_export_that_fails_keeps_its_exit_code(
    run_copy: Path, onnx_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_the_fly.subprocess, "run", Exporter(onnx_model, 3))  # type: ignore[attr-defined]
    with pytest.raises(DucatError, match="could not be exported") as error:
        exported(run_copy, Output(silent=True))
    assert error.value.exit_code == 3


def test_a_folder_with_nothing_to_serve_names_a_step_that_exists(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        Repository(tmp_path).find()
    assert "run/" not in str(error.value.next_step)
    assert "model.onnx" in str(error.value.next_step)


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
