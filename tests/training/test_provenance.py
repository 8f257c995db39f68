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
from tests.support.training_runs import run_until, trainer
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
def test_a_model_records_command_and_revision_of_the_code_that_trained_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    (folder / "last.pt").unlink()  # the run starts over, and nothing of the code that began it is left
    assert run(["train", "--resume", str(folder)]) == 0
    again = read_spec(folder / "model.safetensors")
    assert again.weights_digest == spec.weights_digest
    assert (again.command, again.git_revision, again.versions) == (COMMAND, "other", {"python": "4.0.0"})
    assert "resumed" not in again.training


@pytest.mark.integration
def test_a_run_of_a_recipe_file_records_a_command_that_needs_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(
        'extends = "digits"\nbatch-size = 256\nattack-steps = 1\neps = 0.1234567890123\n'
    )
    given = ["--epochs", "1", "--precision", "float32"]
    assert run(["train", "--recipe", "mine.toml", *given, "--out", "run"]) == 0
    spec = read_spec(Path("run/model.safetensors"))
    assert spec.command == (
        "ducat train --dataset digits --eps 0.1234567890123 --attack-steps 1 --epochs 1 --batch-size 256 "
        "--precision float32"
    )
    Path("mine.toml").unlink()
    assert run([*spec.command.split()[1:], "--out", "again"]) == 0
    assert read_spec(Path("again/model.safetensors")).weights_digest == spec.weights_digest


@pytest.mark.integration
def test_other_code_that_goes_on_with_a_run_is_said_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "run")
    begun = trainer(folder.path, epochs=2, ducat_start=2)
    folder.write_provenance(Provenance(COMMAND, "a1b2c3", VERSIONS))
    run_until(begun, 7)  # in the second epoch
    monkeypatch.setattr(start, "git_revision", lambda: "a1b2c3")
    monkeypatch.setattr(start, "installed_versions", lambda: {**VERSIONS, "torch": "3.0.0"})
    for _ in range(2):  # the second time nothing is left to be trained
        again = trainer(folder.path, epochs=2, ducat_start=2)
        start.train(again, start.Run(again.config, folder, resumed=True))
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("other code goes on with this run (torch 2.14.1, now 3.0.0)") == 1
    spec = read_spec(folder.last)
    assert (spec.command, spec.git_revision, spec.versions) == (COMMAND, "a1b2c3", VERSIONS)
    assert spec.training["resumed"] == [
        {"epoch": 2, "git_revision": "a1b2c3", "versions": {"python": "3.99.0", "torch": "3.0.0"}}
    ]
    assert "resumed" not in read_spec(folder.pre_dummy).training  # which was written before
    assert run(["inspect", str(folder.last)]) == 0
    assert "epoch 2: revision a1b2c3, python 3.99.0, torch 3.0.0" in " ".join(capsys.readouterr().out.split())
    card = model_card(spec, "model.safetensors")
    assert "Versions: `python 3.99.0, torch 2.14.1`" in card
    assert "Resumed by other code: `epoch 2: revision a1b2c3, python 3.99.0, torch 3.0.0`" in card


def test_what_is_not_known_of_the_code_is_no_change() -> None:
    assert Provenance().changes("a1b2c3", VERSIONS) == []
    assert Provenance(None, "a1b2c3", VERSIONS).changes(None, {}) == []
    resumed = Provenance(None, "a1b2c3", VERSIONS).resumed_by(3, "d4", VERSIONS)
    assert resumed.changes("d4", VERSIONS) == []
    assert resumed.changes("a1b2c3", VERSIONS) == ["revision d4, now a1b2c3"]


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
