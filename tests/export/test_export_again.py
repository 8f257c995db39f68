"""An export where another one is: beside it, in its place, or refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

from ducat_serve.bundled import model_path
from ducat_serve.checkpoint import read_checkpoint, read_spec, write_checkpoint
from ducat_serve.cli.main import run
from ducat_serve.library.storing import store_in_export
from ducat_serve.predictor import Predictor
from ducat_serve.report import RobustnessReport
from ducat_serve.spec import ModelSpec
from export import onnx_writer
from export.graph import DeployGraph
from tests.support.reports import CORRUPTIONS


def test_checkpoints_of_one_folder_are_exported_beside_each_other(tmp_path: Path) -> None:
    """`last.safetensors` lies in every run folder beside the best weights, whose export stays."""
    source = model_path("digits-small", "safetensors")
    for name in ("model", "last"):
        shutil.copy(source, tmp_path / f"{name}.safetensors")
    for name in ("model", "last"):
        assert run(["export", str(tmp_path / f"{name}.safetensors")]) == 0
    assert run(["export", str(tmp_path / "last.safetensors"), "--precision", "float16"]) == 0
    assert {file.name for file in tmp_path.glob("*.onnx")} == {"model.onnx", "last.onnx", "last-float16.onnx"}
    assert (tmp_path / "last.md").is_file()


def test_a_report_that_is_in_an_exported_file_alone_outlives_the_next_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Path(shutil.copy(model_path("digits-small", "safetensors"), tmp_path / "model.safetensors"))
    file = tmp_path / "model-float16.onnx"
    command = ["export", str(checkpoint), "--precision", "float16"]
    assert run(command) == 0
    before = Predictor(file, "cpu")
    assert before.spec.robustness is None
    of_checkpoint = read_spec(checkpoint).robustness
    assert of_checkpoint is not None
    report = of_checkpoint.model_copy(update={"artefact": "onnx", "precision": "float16"})
    store_in_export(file, before.function_digest, lambda _: report)
    assert run(command) == 0
    assert Predictor(file, "cpu").spec.robustness == report
    assert "robustness not measured" not in file.with_suffix(".md").read_text()

    there = file.read_bytes()
    spec, tensors = read_checkpoint(checkpoint)
    write_checkpoint(checkpoint, tensors, spec.model_copy(update={"labels": tuple("9876543210")}))
    assert run(command) == 2
    said = capsys.readouterr().err
    assert "another model, with a report that is nowhere else" in said
    assert "--out" in said
    assert file.read_bytes() == there
    assert run(["export", str(checkpoint), "--out", str(tmp_path / "model.onnx")]) == 0, "it has no report"


def test_corruptions_that_were_measured_on_an_exported_file_stay_in_it(tmp_path: Path) -> None:
    file = tmp_path / "digits-small.onnx"
    command = ["export", "digits-small", "--out", str(file)]
    assert run(command) == 0
    exported = Predictor(file, "cpu")
    report = exported.spec.robustness
    assert report is not None
    measured = report.model_copy(update={"corruptions": CORRUPTIONS})
    store_in_export(file, exported.function_digest, lambda _: measured)
    assert run(command) == 0
    assert Predictor(file, "cpu").spec.robustness == measured


def test_a_checkpoint_that_is_replaced_while_it_is_exported_is_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training puts better weights there; the export would be bound to a file that it was not made of."""
    checkpoint = Path(shutil.copy(model_path("digits-small", "safetensors"), tmp_path / "model.safetensors"))
    real = onnx_writer._exported

    def meanwhile(graph: DeployGraph, spec: ModelSpec) -> onnx.ModelProto:
        known, tensors = read_checkpoint(checkpoint)
        write_checkpoint(checkpoint, tensors, known.model_copy(update={"robustness": None}))
        return real(graph, spec)

    monkeypatch.setattr(onnx_writer, "_exported", meanwhile)
    assert run(["export", str(checkpoint)]) == 3
    assert "was replaced while it was exported" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.onnx"))


def test_each_checkpoint_of_a_folder_has_attacked_images_of_its_own(tmp_path: Path) -> None:
    names = ("model", "last")
    files = [tmp_path / f"{name}.safetensors" for name in names]
    for file in files:
        shutil.copy(model_path("digits-small", "safetensors"), file)
        assert run(["evaluate", str(file), "--attack", "pgd", "--max-examples", "20", "--replace"]) == 0
        assert run(["export", str(file), "--examples"]) == 0
    assert {file.name for file in tmp_path.glob("*examples.json")} == {"examples.json", "last-examples.json"}


def test_images_of_a_bundled_model_are_those_of_its_copy_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["evaluate", "digits-small", "--attack", "pgd", "--max-examples", "20", "--replace"]) == 0
    assert run(["export", "digits-small", "--examples"]) == 0
    assert Predictor(tmp_path / "digits-small.onnx", "cpu").examples is not None


def test_a_text_of_somebodys_own_is_not_replaced_by_a_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Path(shutil.copy(model_path("digits-small", "safetensors"), tmp_path / "model.safetensors"))
    for name in ("digits", "model"):
        (tmp_path / f"{name}.md").write_text("# My notes")
    assert run(["export", str(checkpoint), "--out", str(tmp_path / "digits.onnx")]) == 2
    assert "digits.md is not the card of digits.onnx" in capsys.readouterr().err
    assert run(["export", str(checkpoint), "--out", str(tmp_path / "m.onnx")]) == 0
    assert run(["export", str(checkpoint), "--out", str(tmp_path / "m.onnx")]) == 0, "a card of its own is"
    (tmp_path / "m.md").write_text("# My notes")
    store_in_export(tmp_path / "m.onnx", Predictor(tmp_path / "m.onnx", "cpu").function_digest, _same)
    assert {file.read_text() for file in tmp_path.glob("*.md")} == {"# My notes"}


def _same(report: RobustnessReport | None) -> RobustnessReport:
    assert report is not None
    return report
