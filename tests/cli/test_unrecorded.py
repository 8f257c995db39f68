"""A model whose ModelSpec records nothing of its training: every command says so, or what it needs to be told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ducat_serve.checkpoint import read_spec
from ducat_serve.cli.main import run
from ducat_serve.errors import DataError
from ducat_serve.output import Output
from tests.support.checkpoints import SPEC, forged, untrained
from training.data import Dataset
from training.run.dataset import load_training_data

DIGITS: dict[str, Any] = {"num_classes": 10, "labels": tuple("0123456789")}
UNRECORDED: list[dict[str, Any]] = [
    {},
    {"recipe": {}},
    {"recipe": []},
    {"recipe": {"dataset": "digits"}},
    {"data": "digits", "recipe": {"seed": 3}},
]


def model(folder: Path, training: dict[str, Any]) -> Path:
    return forged(
        folder / "m.safetensors", untrained(SPEC.model_copy(update=DIGITS)), training=training, **DIGITS
    )


@pytest.mark.parametrize("training", UNRECORDED, ids=str)
def test_inspect(training: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model(tmp_path, training)
    assert run(["inspect", str(path)]) == 0
    assert "not recorded" in capsys.readouterr().out
    assert run(["inspect", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["spec"]["training"] == training
    assert "not forgery" in document["digests"]


def training_data(path: Path, dataset: str | None) -> Dataset:
    return load_training_data(
        path, read_spec(path), dataset=dataset, data_dir=None, offline=True, output=Output()
    )


@pytest.mark.parametrize("training", UNRECORDED, ids=str)
def test_the_data_set_has_to_be_known(training: dict[str, Any], tmp_path: Path) -> None:
    path = model(tmp_path, training)
    if "dataset" not in dict(training.get("recipe", {})):
        with pytest.raises(DataError, match="does not record which data set") as caught:
            training_data(path, None)
        assert caught.value.exit_code == 4
        assert "--dataset" in str(caught.value.next_step)
    assert training_data(path, "digits").title == "digits"


def test_a_seed_that_is_not_recorded_is_not_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training_data(model(tmp_path, {}), "digits")
    assert "does not record the seed" in capsys.readouterr().err
    training_data(model(tmp_path, {"recipe": {"seed": 3}}), "digits")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "recipe", [{"seed": -1}, {"seed": "x"}, {"seed": 2**80}, {"image_size": 10**9}, {"dataset": 3}], ids=str
)
def test_a_recipe_that_makes_no_sense(recipe: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="makes no sense"):
        training_data(model(tmp_path, {"recipe": recipe}), "digits")


@pytest.mark.integration
def test_evaluate_export_and_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model(tmp_path, {})
    assert run(["evaluate", str(path)]) == 4
    assert "--dataset" in capsys.readouterr().err
    flags = ["--dataset", "digits", "--attack", "apgd-ce", "--max-examples", "20", "--json"]
    assert run(["evaluate", str(path), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["dataset"] == "digits"
    assert run(["export", str(path), "--out", str(tmp_path / "m.onnx")]) == 0
    assert "does not record which data set" in capsys.readouterr().err
    assert "- Data: not recorded" in (tmp_path / "m.md").read_text()
    Image.new("RGB", (8, 8)).save(tmp_path / "i.png")
    for file in (path, tmp_path / "m.onnx"):
        assert run(["predict", str(file), str(tmp_path / "i.png")]) == 0
        assert run(["inspect", str(file)]) == 0
