"""float16 exports: another function, so nothing measured before is inherited."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from ducat_serve.checkpoint import read_checkpoint, read_spec, weights_digest, write_checkpoint
from ducat_serve.cli.main import run
from ducat_serve.errors import VerificationError
from ducat_serve.predictor import Predictor
from ducat_serve.report import RobustnessReport
from ducat_serve.spec import ModelSpec
from export.onnx_writer import store_report
from training.data import load_dataset


@pytest.fixture(scope="module")
def folder(measured_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A measured checkpoint with exports of both precisions."""
    folder = tmp_path_factory.mktemp("precision") / "run"
    shutil.copytree(measured_folder, folder)
    assert run(["export", str(folder), "--precision", "float16"]) == 0
    return folder


def test_float16_is_half_the_size_and_answers_alike(folder: Path) -> None:
    full, half = Predictor(folder / "model.onnx", "cpu"), Predictor(folder / "model-float16.onnx", "cpu")
    images = load_dataset("digits").test.images
    a, b = full(images), half(images)
    assert b.logits.dtype == np.float32
    assert 0 < np.abs(a.logits - b.logits).max() < 0.02 * max(10, np.abs(a.logits).max())
    assert (a.label == b.label).mean() > 0.99
    sizes = [(folder / name).stat().st_size for name in ("model-float16.onnx", "model.onnx")]
    assert sizes[0] < 0.6 * sizes[1]
    # The head stays in float32: its weights are, and no float16 value reaches the outputs.
    model = onnx.load(folder / "model-float16.onnx")
    kinds = {i.name: i.data_type for i in model.graph.initializer}
    heads = [kind for name, kind in kinds.items() if "fc" in name]
    assert heads
    assert set(heads) == {onnx.TensorProto.FLOAT}
    assert onnx.TensorProto.FLOAT16 in kinds.values()


def test_the_report_is_dropped_and_measured_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = folder / "model-float16.onnx"
    assert Predictor(folder / "model.onnx", "cpu").spec.robustness is not None
    before = Predictor(half, "cpu")
    assert before.spec.precision == "float16"
    assert before.spec.robustness is None
    assert "`ducat evaluate model-float16.onnx` measures it" in (folder / "model-float16.md").read_text()
    capsys.readouterr()
    assert run(["inspect", str(half)]) == 0
    assert "robustness not measured" in capsys.readouterr().out

    assert run(["evaluate", str(half), "--max-examples", "12", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    after = Predictor(half, "cpu")  # sealed again, and readable
    report = after.spec.robustness
    assert report is not None
    assert report.model_dump(mode="json") == printed
    assert (report.precision, report.artefact) == ("float16", "onnx")
    assert "scores only" in report.summary()
    assert "see only its scores" in (folder / "model-float16.md").read_text()  # the card was written again
    assert after.source_sha256 == before.source_sha256
    images = load_dataset("digits").test.images[:8]
    assert np.array_equal(after(images).logits, before(images).logits)


def _instead(report: RobustnessReport, _: RobustnessReport | None) -> RobustnessReport:
    return report


def test_a_report_of_another_precision_or_other_weights_is_refused(folder: Path) -> None:
    spec = read_spec(folder / "model.safetensors")
    report = spec.robustness
    assert report is not None
    forged = spec.model_copy(update={"precision": "float16"})
    with pytest.raises(VerificationError, match="another precision"):
        ModelSpec.from_json(forged.to_json(), "forged")
    half = folder / "model-float16.onnx"
    before, function = half.read_bytes(), Predictor(half, "cpu").function_digest
    for wrong in (report, report.model_copy(update={"precision": "float16", "weights_digest": "0" * 64})):
        with pytest.raises(VerificationError, match="measured"):
            store_report(half, function, partial(_instead, wrong))
    assert half.read_bytes() == before


def test_weights_that_float16_cannot_hold_are_not_exported(folder: Path, tmp_path: Path) -> None:
    """A first layer a million times larger, undone by its BatchNorm: nothing to float32, infinite in float16."""
    spec, tensors = read_checkpoint(folder / "model.safetensors")
    huge = {
        **tensors,
        "conv1.weight": tensors["conv1.weight"] * np.float32(1e6),
        "bn1.running_mean": tensors["bn1.running_mean"] * np.float32(1e6),
        "bn1.running_var": tensors["bn1.running_var"] * np.float32(1e12),
    }
    changed = spec.model_copy(update={"weights_digest": weights_digest(huge), "robustness": None})
    write_checkpoint(tmp_path / "model.safetensors", huge, changed)
    export = ["export", str(tmp_path / "model.safetensors"), "--dataset", "digits"]
    assert run([*export, "--precision", "float16"]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]
    assert run(export) == 0
