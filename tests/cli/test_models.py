"""`ducat models`, and the names of bundled models in every command that takes a model."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from ducat_serve import bundled
from ducat_serve.bundled import bundled_models, model_path
from ducat_serve.checkpoint import read_spec
from ducat_serve.cli.main import run
from ducat_serve.errors import DataError
from ducat_serve.predictor import Predictor
from service.settings import Settings
from tests.support.checkpoints import forged, untrained
from training.data import load_dataset

FOLDER = bundled.FOLDER
NAME = "digits-small"
QUICK = ["--attack", "pgd", "--max-examples", "12", "--offline"]


def package_files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in an empty folder and finds the package as it was."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _package_untouched() -> Iterator[None]:
    before = package_files()
    yield
    assert package_files() == before


@pytest.fixture
def image(here: Path) -> str:
    """The first test image."""
    Image.fromarray(load_dataset("digits").test.images[0]).save(here / "digit.png")
    return "digit.png"


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def failure(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> dict[str, str]:
    capsys.readouterr()
    assert run([*arguments, "--json"]) == code
    error: dict[str, str] = json.loads(capsys.readouterr().out)["error"]
    return error


def test_lists_every_model_with_origin_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    listed = answer(capsys, "models")["models"]
    assert [entry["name"] for entry in listed] == sorted(bundled_models())
    for entry in listed:
        assert {"dataset", "network", "parameters", "sha256", "command", "git_revision"} <= set(entry)
        assert entry["worst_case_interval"][0] < entry["worst_case_accuracy"] < entry["clean_accuracy"]
        assert all(Path(file).is_file() for file in entry["files"].values())
    assert run(["models"]) == 0
    assert NAME in "".join(capsys.readouterr())


def test_predict_inspect_and_compare_take_the_name(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "predict", NAME, image)["predictions"][0]["label"] == "0"
    assert answer(capsys, "predict", f"bundled:{NAME}", image)["predictions"][0]["label"] == "0"
    assert (
        answer(capsys, "inspect", NAME)["spec"]["weights_digest"]
        == read_spec(FOLDER / f"{NAME}.safetensors").weights_digest
    )
    [compared] = answer(capsys, "compare", NAME)["models"]
    assert compared["name"] == NAME


def test_export_writes_here(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "export", NAME)["model"] == f"{NAME}.onnx"
    exported = Predictor(here / f"{NAME}.onnx", "cpu", threads=1)
    assert exported.source_sha256 == bundled_models()[NAME].sha256["safetensors"]
    assert (here / f"{NAME}.md").is_file()


def test_evaluate_measures_a_copy_here(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = answer(capsys, "evaluate", NAME, *QUICK)
    assert [attack["name"] for attack in report["attacks"]] == ["pgd"]
    copy = here / f"{NAME}.safetensors"
    not_stored = here / f"{NAME}.robustness.json"
    assert {path.name for path in here.iterdir()} == {copy.name, not_stored.name}
    assert [attack["name"] for attack in json.loads(not_stored.read_text())["attacks"]] == ["pgd"]
    before = not_stored.read_bytes()
    answer(capsys, "evaluate", NAME, *QUICK, "--max-examples", "11")  # says less than either
    assert not_stored.read_bytes() == before
    assert json.loads((here / f"{NAME}.robustness-2.json").read_text())["examples"] == 11
    kept = read_spec(copy).robustness
    assert kept is not None
    assert kept.examples == bundled_models()[NAME].examples, "the bundled report says more"
    answer(capsys, "evaluate", NAME, *QUICK, "--max-examples", "11", "--replace")  # the same copy again
    assert answer(capsys, "inspect", copy.name)["spec"]["robustness"]["examples"] == 11

    copy.write_bytes(b"something else")
    assert failure(capsys, 4, "evaluate", NAME, *QUICK)["message"].startswith(copy.name)
    assert copy.read_bytes() == b"something else"


def test_evaluate_does_not_replace_another_model_of_that_file_name(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = here / f"{NAME}.safetensors"
    other = forged(copy, untrained()).read_bytes()
    error = failure(capsys, 2, "evaluate", NAME, *QUICK)
    assert "another digits-small.safetensors here" in error["message"]
    assert "another folder" in error["next"]
    assert copy.read_bytes() == other


def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The environments that servers would be started with; none is."""
    environments: list[dict[str, str]] = []
    monkeypatch.setattr(
        os, "execve", lambda _program, _arguments, environment: environments.append(environment)
    )
    monkeypatch.setattr("service.server.process.ignore_sighup", lambda: None)
    monkeypatch.setattr("service.server.process.bind", lambda *_: io.BytesIO())
    return environments


def test_serve_hands_the_export_to_the_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environments = handed_over(monkeypatch)
    assert answer(capsys, "serve", NAME)["names"] == [NAME]
    assert environments[0]["DUCAT_SERVE_MODEL"] == str(FOLDER / f"{NAME}.onnx")


def test_links_are_followed_at_every_reading_and_not_at_the_start(
    onnx_model: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Secret of Kubernetes, and a model that is rolled out by a link, are replaced by turning the link."""
    environments = handed_over(monkeypatch)
    (here / "keys.1").write_text("alice:" + 32 * "a")
    (here / "keys").symlink_to("keys.1")
    (here / "digits.onnx").symlink_to(onnx_model)
    assert run(["serve", "digits.onnx", "--keys-file", "keys"]) == 0
    assert environments[0]["DUCAT_SERVE_MODEL"] == str(here / "digits.onnx")
    assert environments[0]["DUCAT_SERVE_KEYS_FILE"] == str(here / "keys")


MODEL_COMMANDS = ["serve", "benchmark", "predict", "inspect", "evaluate", "export", "compare", "bento"]


@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_bad_names_are_errors_with_the_next_command(
    command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["digit.png"] if command == "predict" else []
    unknown = failure(capsys, 4, command, "cifar10-smaller", *more)
    assert "no bundled model" in unknown["message"]
    assert NAME in unknown["next"]
    (here / NAME).mkdir()
    both = failure(capsys, 2, command, NAME, *more)
    assert f"./{NAME}" in both["next"]
    assert f"bundled:{NAME}" in both["next"]


@pytest.fixture
def changed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both files of every bundled model have a byte more than they should."""
    package = tmp_path / "package"
    package.mkdir()
    for file in FOLDER.iterdir():
        if file.is_file():
            (package / file.name).write_bytes(
                file.read_bytes() + b"x" * (file.suffix in (".onnx", ".safetensors"))
            )
    monkeypatch.setattr(bundled, "FOLDER", package)


def test_folders_of_what_evaluate_writes_are_made() -> None:
    files = ["--out", "reports/new/x.json", "--per-image", "rows/x.csv"]
    assert run(["evaluate", NAME, *QUICK, *files]) == 0
    assert json.loads(Path("reports/new/x.json").read_text())["examples"] == 12
    assert len(Path("rows/x.csv").read_text().splitlines()) == 13


@pytest.mark.parametrize("command", ["inspect", "evaluate", "export", "compare", "bento", "benchmark"])
@pytest.mark.parametrize("name", ["text.txt", "text.onnx", "part.onnx", "foreign.safetensors"])
def test_a_file_that_is_no_model_is_exit_code_4(
    name: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text.txt").write_text("no model\n")
    Path("text.onnx").write_text("no model\n")
    Path("part.onnx").write_bytes(model_path("digits-small", "onnx").read_bytes()[:5000])
    save_file({"weight": np.zeros(1, np.float32)}, "foreign.safetensors")
    assert name in failure(capsys, 4, command, name)["message"]


@pytest.mark.usefixtures("changed_package")
@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_a_changed_file_is_exit_code_4(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["digit.png"] if command == "predict" else []
    error = failure(capsys, 4, command, NAME, *more)
    assert "SHA-256" in error["message"]
    assert "pip install --force-reinstall" in error["next"]


@pytest.mark.usefixtures("changed_package")
def test_the_list_names_changed_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, *_ = bundled_models().values()
    (tmp_path / "package" / f"{one.name}.onnx").write_bytes(one.path("onnx").read_bytes()[:-1])
    (tmp_path / "package" / f"{NAME}.onnx").unlink()
    listed = {model["name"]: model["changed"] for model in answer(capsys, "models")["models"]}
    assert listed[one.name] == ["safetensors"]
    assert listed[NAME] == ["safetensors", "onnx"]
    assert run(["models"]) == 0
    shown = capsys.readouterr()
    assert [" (changed) " in line for line in shown.out.splitlines()] == [False, *[True] * len(listed)]
    assert "the SHA-256 of" in shown.err
    assert "cannot be read" in shown.err
    assert "Next: pip install --force-reinstall" in shown.err


def test_the_service_takes_the_name_of_a_bundled_model(here: Path) -> None:
    def model(value: str) -> Path:
        return Settings.from_environment({"DUCAT_SERVE_MODEL": value}).model

    assert model(NAME) == model(f"bundled:{NAME}") == FOLDER / f"{NAME}.onnx"
    assert model("other/model.onnx") == Path("other/model.onnx")
    with pytest.raises(DataError, match="no bundled model of that name"):
        model("digits-smal")
    (here / NAME).mkdir()
    assert model(f"./{NAME}") == Path(NAME)
