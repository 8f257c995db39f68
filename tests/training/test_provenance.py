"""The command and the revision that a model says it comes from."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy
import pytest

from ducat_serve import __version__
from ducat_serve.checkpoint import read_spec
from ducat_serve.cli.main import run
from export.model_card import model_card
from training import provenance
from training.provenance import Provenance, git_revision, installed_versions, training_command
from training.run import start
from training.run.folder import RunFolder

QUICK = ["--epochs", "1", "--attack-steps", "1", "--batch-size", "256", "--precision", "float32"]
VERSIONS = {"python": "3.99.0", "torch": "2.14.1"}
COMMAND = (
    "ducat train --dataset digits --eps 0.1 --attack-steps 1 --epochs 1 --batch-size 256 --precision float32"
)


@pytest.mark.parametrize(
    ("options", "command"),
    [
        ({"dataset": None}, "ducat train"),
        (
            {"dataset": "digits", "beta": 0.5, "flip": False},
            "ducat train --dataset digits --beta 0.5 --no-flip",
        ),
        ({"dataset": "folder:/home/me/two words"}, "ducat train --dataset 'folder:two words'"),
        ({"initial_checkpoint": Path("/home/me/runs/off")}, "ducat train --initial-checkpoint off"),
        ({"eps": 8 / 255, "lr_milestones": (3, 5)}, "ducat train --eps 8/255 --lr-milestones 3,5"),
    ],
)
def test_the_command_has_what_was_given_and_no_folder(options: dict[str, object], command: str) -> None:
    assert training_command(options) == command


@pytest.mark.integration
def test_a_model_records_command_and_revision_and_a_resumed_run_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(start, "git_revision", lambda: "a1b2c3")
    monkeypatch.setattr(start, "installed_versions", lambda: VERSIONS)
    monkeypatch.setenv("DUCAT_TRAIN_EPS", "0.1")  # counts like a flag
    monkeypatch.setenv("DUCAT_TRAIN_SKIP_BROKEN", "0")  # there is no flag that says so
    folder = tmp_path / "run"
    assert run(["train", "--dataset", "digits", *QUICK, "--out", str(folder)]) == 0
    spec = read_spec(folder / "model.safetensors")
    assert (spec.command, spec.git_revision, spec.versions) == (COMMAND, "a1b2c3", VERSIONS)
    assert str(tmp_path) not in spec.to_json()
    assert RunFolder(folder).read_provenance() == Provenance(COMMAND, "a1b2c3", VERSIONS)

    monkeypatch.setattr(start, "git_revision", lambda: "other")
    monkeypatch.setattr(start, "installed_versions", lambda: {"python": "4.0.0"})
    (folder / "last.pt").unlink()  # the run starts over, and comes out the same
    before = (folder / "model.safetensors").read_bytes()
    assert run(["train", "--resume", str(folder)]) == 0
    assert (folder / "model.safetensors").read_bytes() == before
    capsys.readouterr()
    assert run(["inspect", str(folder)]) == 0
    shown = "".join(capsys.readouterr())
    assert "a1b2c3" in shown
    assert "python 3.99.0, torch 2.14.1" in shown
    card = model_card(spec, "model.safetensors")
    assert "Versions: `python 3.99.0, torch 2.14.1`" in card


def test_the_versions_are_those_that_run() -> None:
    versions = installed_versions()
    assert set(versions) == {"ducat-serve", "python", "torch", "torchvision", "numpy", "onnx"}
    assert versions["numpy"] == numpy.__version__
    assert versions["ducat-serve"] == __version__


def test_a_package_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_PACKAGES", ("numpy", "no-such-package"))
    assert set(installed_versions()) == {"python", "numpy"}


def test_a_run_of_an_older_version_says_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.config.write_text(json.dumps({"config": {}, "data_digest": "0"}))
    assert folder.read_provenance() == Provenance(None, None, None)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a file in the place of `training/provenance.py`; the code believes that it is that file."""
    code = tmp_path / "training" / "provenance.py"
    code.parent.mkdir()
    code.write_text("committed\n")
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    monkeypatch.setattr(provenance, "__file__", str(code))
    git(tmp_path, "init", "--quiet")
    return tmp_path


def git(repository: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.check_output(["git", "-C", str(repository), *identity, *arguments], text=True).strip()


@pytest.mark.integration
def test_the_revision_is_that_of_the_code_with_a_mark_where_it_was_changed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert git_revision() is None, "a repository that does not track this code is another project's"
    git(checkout, "add", "training")
    git(checkout, "commit", "--quiet", "--message", "code")
    head = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a hook
    assert git_revision() == head
    (checkout / "notes.md").write_text("not code\n")
    assert git_revision() == head
    (checkout / "training" / "provenance.py").write_text("changed\n")
    assert git_revision() == f"{head}-dirty"


@pytest.mark.integration
def test_without_git_the_revision_is_unknown(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(checkout, "add", "training")
    git(checkout, "commit", "--quiet", "--message", "code")
    assert git_revision() is not None
    monkeypatch.setenv("PATH", "/nonexistent")
    assert git_revision() is None
