"""The models that come with the package: whole, as the index says, and found by name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import ducat_serve
from ducat_serve import bundled
from ducat_serve.bundled import KINDS, BundledModel, Kind, bundled_models, bundled_name, model_path
from ducat_serve.checkpoint import checkpoint_path, read_checkpoint, read_spec
from ducat_serve.deployed import parameter_count
from ducat_serve.errors import DataError, UsageError
from ducat_serve.predictor import Predictor
from export.model_card import model_card
from training.data import load_dataset

NAME = "digits-small"
MODELS = [pytest.param(model, id=model.name) for model in bundled_models().values()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder that may be damaged."""
    copy = tmp_path / "package"
    shutil.copytree(bundled.FOLDER, copy)
    monkeypatch.setattr(bundled, "FOLDER", copy)
    return copy


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize("model", MODELS)
def test_the_card_is_what_an_export_writes_today(model: BundledModel) -> None:
    file = model.file("onnx")
    assert file.with_suffix(".md").read_text() == model_card(read_spec(model.file("safetensors")), file.name)


@pytest.mark.parametrize("model", MODELS)
def test_files_and_index_say_the_same(model: BundledModel) -> None:
    spec, _ = read_checkpoint(model.file("safetensors"))
    predictor = Predictor(model.file("onnx"), "cpu", threads=1)
    report = spec.robustness
    assert report is not None
    assert predictor.spec == spec
    assert predictor.source_sha256 == model.sha256["safetensors"]
    assert model == model.model_copy(
        update={
            "dataset": report.dataset,
            "data_digest": spec.data_digest,
            "network": spec.network,
            "parameters": parameter_count(spec),
            "threat_model": spec.threat_model,
            "examples": report.examples,
            "clean_accuracy": report.clean_accuracy,
            "clean_interval": report.clean_interval,
            "worst_case_accuracy": report.worst_case_accuracy,
            "worst_case_interval": report.worst_case_interval,
            "command": spec.command,
            "git_revision": spec.git_revision,
        }
    )
    card = (bundled.FOLDER / f"{model.name}.md").read_text()
    assert f"{report.worst_case_accuracy:.1%}" in card
    assert spec.command in (None, *card.split("`"))


@pytest.mark.parametrize("model", MODELS)
def test_the_report_is_of_a_whole_suite_on_test_images(model: BundledModel) -> None:
    report = read_checkpoint(model.file("safetensors"))[0].robustness
    assert report is not None
    assert report.split == "test"
    assert not report.is_screening  # of now, or that of the version that measured it
    assert report.failed_checks == ()


def test_the_index_holds_no_file_twice_and_no_file_is_left_over() -> None:
    expected = {f"{name}.{suffix}" for name in bundled_models() for suffix in (*KINDS, "md")}
    found = {path.name for path in bundled.FOLDER.iterdir() if path.is_file()}
    assert found == expected | {"__init__.py", "index.json"}


def test_the_digits_model_is_as_accurate_as_it_says() -> None:
    test = load_dataset("digits").test
    right = (Predictor(NAME, "cpu", threads=1)(test.images).label == test.labels).mean()
    assert right == pytest.approx(bundled_models()[NAME].clean_accuracy, abs=1.5 / len(test))
    assert right > 0.97


def test_load_takes_the_name_and_gives_what_the_export_computes() -> None:
    images = load_dataset("digits").test.images[:8]
    model = ducat_serve.load(NAME)
    logits = model(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    np.testing.assert_allclose(logits, ducat_serve.Predictor(NAME, "cpu")(images).logits, atol=1e-4)
    assert model.spec.labels == tuple("0123456789")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["changed", "truncated", "missing", "a folder"])
def test_a_damaged_file_is_named_with_the_next_command(folder: Path, kind: Kind, damage: str) -> None:
    file = folder / f"{NAME}.{kind}"
    data = bytearray(file.read_bytes())
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    elif damage != "missing":
        data[len(data) // 2] ^= 1
        file.write_bytes(data if damage == "changed" else data[:-1])
    with pytest.raises(DataError, match=str(file)) as refused:
        model_path(NAME, kind)
    assert refused.value.exit_code == 4
    assert "pip install --force-reinstall" in str(refused.value.next_step)
    # The other file is whole.
    assert model_path(NAME, "onnx" if kind == "safetensors" else "safetensors").is_file()


@pytest.mark.parametrize("text", [None, "", "{}", '{"models": [{"name": "../x"}]}', "[" * 100_000])
def test_a_damaged_index_is_named(folder: Path, text: str | None) -> None:
    (folder / "index.json").unlink()
    if text is not None:
        (folder / "index.json").write_text(text)
    with pytest.raises(DataError, match=r"index\.json"):
        model_path(NAME, "onnx")
    assert model_path("runs/a", "onnx") == Path("runs/a"), "paths need no index"


def test_names_and_paths(here: Path) -> None:
    file = model_path(NAME, "onnx")
    assert (file.name, bundled_name(file)) == (f"{NAME}.onnx", NAME)
    assert model_path(f"bundled:{NAME}", "safetensors").name == f"{NAME}.safetensors"
    for path in (
        "model.onnx",
        "runs/digits",
        f"./{NAME}",
        f"{NAME}.onnx",
        str(here),
        "..",
        f"{NAME}{os.sep}",
    ):
        assert model_path(path, "onnx") == Path(path)
        assert bundled_name(Path(path)) is None
    assert model_path(Path(NAME), "onnx") == Path(NAME), "a Path is always a path"


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_a_name_that_is_also_a_file_or_folder_is_refused_with_both_ways_out(here: Path, make: object) -> None:
    assert callable(make)
    make(here / NAME)
    with pytest.raises(UsageError, match=NAME) as refused:
        model_path(NAME, "onnx")
    ways = str(refused.value.next_step)
    assert f"./{NAME} for what is here" in ways
    assert f"bundled:{NAME} for the bundled model" in ways
    assert model_path(f"./{NAME}", "onnx") == Path(NAME)
    assert bundled_name(model_path(f"bundled:{NAME}", "onnx")) == NAME


def test_an_unknown_name_lists_the_bundled_ones(here: Path) -> None:
    with pytest.raises(DataError, match="Did you mean 'digits-small'") as refused:
        model_path("digits-smal", "onnx")
    assert all(name in str(refused.value.next_step) for name in bundled_models())
    with pytest.raises(UsageError, match="Unknown bundled model 'x'"):
        model_path("bundled:x", "onnx")
    (here / "run").mkdir()
    assert model_path("run", "onnx") == Path("run")


def test_a_name_that_no_file_system_takes_is_not_there(here: Path) -> None:
    with pytest.raises(DataError, match="There is no file or folder"):
        model_path("x" * 300, "onnx")
    with pytest.raises(DataError, match="There is no checkpoint"):
        read_spec(checkpoint_path(here / ("x" * 300)))
