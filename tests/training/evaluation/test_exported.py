"""`ducat evaluate` on an exported file: scores only, 8-bit images, and transfer from its checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ducat_serve.checkpoint import read_checkpoint, write_checkpoint
from ducat_serve.cli.main import run
from ducat_serve.deployed import load
from ducat_serve.predictor import Predictor
from training.attacks.base import TargetModel
from training.evaluation.loading import exported_model
from training.evaluation.stages import score_attacks


@pytest.fixture(scope="module")
def folder(run_folder: Path, onnx_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export beside its checkpoint."""
    folder = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(run_folder, folder)
    shutil.copy(onnx_model, folder / "model.onnx")
    return folder


FEW = ["--max-examples", "16", "--json"]


def test_an_export_is_attacked_by_scores_and_by_transfer(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(folder / "model.onnx"), *FEW]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["artefact"] == "onnx"
    assert [a["name"] for a in report["attacks"]] == ["transfer", "square"]
    assert report["worst_case_accuracy"] < report["clean_accuracy"]
    assert all(a["gradient_steps"] == 0 for a in report["attacks"])  # of the exported file itself
    # It had no report, so this is what can be said of it.
    stored = Predictor(folder / "model.onnx", "cpu").spec.robustness
    assert stored is not None
    assert stored.model_dump(mode="json") == report
    # the same clean images through torch
    assert run(["evaluate", str(folder), *FEW, "--attack", "pgd"]) == 0
    assert json.loads(capsys.readouterr().out)["clean_accuracy"] == report["clean_accuracy"]
    # A white-box report is never replaced by one of scores only.
    assert run(["export", str(folder)]) == 0
    before = (folder / "model.onnx").read_bytes()
    assert run(["evaluate", str(folder / "model.onnx"), *FEW]) == 0
    assert "stays" in capsys.readouterr().err
    assert (folder / "model.onnx").read_bytes() == before


def test_without_its_checkpoint_there_is_no_transfer(
    onnx_model: Path, run_folder: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "alone").mkdir()
    onnx_model = Path(shutil.copy(onnx_model, tmp_path / "alone"))  # a report will be stored in it
    assert run(["evaluate", str(onnx_model), *FEW]) == 0
    captured = capsys.readouterr()
    assert [a["name"] for a in json.loads(captured.out)["attacks"]] == ["square"]
    assert "name it with --checkpoint" in captured.err
    attack = ["--attack", "transfer"]
    assert run(["evaluate", str(onnx_model), *FEW, *attack]) == 2
    assert run(["evaluate", str(onnx_model), *FEW, *attack, "--checkpoint", str(run_folder)]) == 0
    capsys.readouterr()

    spec, tensors = read_checkpoint(folder / "model.safetensors")
    other = {
        name: array * np.float32(1.001) if array.dtype == np.float32 else array
        for name, array in tensors.items()
    }
    from ducat_serve.checkpoint import weights_digest

    stranger = spec.model_copy(update={"weights_digest": weights_digest(other), "robustness": None})
    write_checkpoint(tmp_path / "model.safetensors", other, stranger)
    assert run(["evaluate", str(onnx_model), *FEW, "--checkpoint", str(tmp_path)]) == 3
    assert "other weights" in capsys.readouterr().err


@pytest.mark.parametrize("attack", ["pgd", "targeted", "autoattack"])
def test_gradient_attacks_on_an_export_are_refused(
    onnx_model: Path, attack: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(onnx_model), "--attack", attack]) == 2
    assert "there are only scores here" in capsys.readouterr().err


def test_a_suite_with_a_typo(onnx_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(onnx_model), "--suite", "ful"]) == 2
    assert "Did you mean 'full'" in capsys.readouterr().err


def test_the_exported_model_sees_8_bit_images(onnx_model: Path, checkpoint: Path) -> None:
    model = exported_model(Predictor(onnx_model, "cpu"))
    levels = torch.randint(256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        reference = load(checkpoint)(levels / 255)
        torch.testing.assert_close(model(levels / 255), reference, rtol=1e-4, atol=1e-4)
        # what lies between two grey levels is rounded to the nearer one
        assert torch.equal(model((levels + 0.4).clamp(0, 255) / 255), model(levels / 255))


@pytest.mark.parametrize(("name", "queries"), [("quick", 1000), ("standard", 5000), ("full", 5000)])
def test_where_there_is_nothing_but_scores_a_longer_suite_asks_more_of_them(name: str, queries: int) -> None:
    (attack,) = score_attacks(name, (), TargetModel("none", 10), "measure something else")
    assert attack.settings()["queries"] == queries
