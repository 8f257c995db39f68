"""A report is stored only in the file of the function that was measured, and beside what others stored there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ducat_serve.bundled import model_path
from ducat_serve.checkpoint import read_checkpoint, read_spec, write_checkpoint
from ducat_serve.cli.commands import evaluate
from ducat_serve.cli.main import run
from ducat_serve.errors import VerificationError
from ducat_serve.library.corruptions import MeasuredCorruptions
from ducat_serve.library.storing import store_in_export
from ducat_serve.output import Output
from ducat_serve.predictor import Predictor
from ducat_serve.report import RobustnessReport
from ducat_serve.sealed import SEAL_LENGTH, seal
from tests.support.reports import CORRUPTIONS

PGD = ["--attack", "pgd", "--max-examples", "20", "--replace"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copy(model_path("digits-small", "safetensors"), tmp_path / "model.safetensors"))


def changed(checkpoint: Path, **update: object) -> bytes:
    """The same weights with another spec, in the place of ``checkpoint``; returns what is there then."""
    spec, tensors = read_checkpoint(checkpoint)
    write_checkpoint(checkpoint, tensors, spec.model_copy(update=update))
    return checkpoint.read_bytes()


def test_a_checkpoint_that_was_replaced_meanwhile_is_left_alone(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tuple("9876543210")
    there: list[bytes] = []
    monkeypatch.setattr(
        evaluate, "show_report", lambda *_: there.append(changed(checkpoint, labels=labels, robustness=None))
    )
    out = tmp_path / "report.json"
    assert run(["evaluate", str(checkpoint), *PGD, "--out", str(out)]) == 3
    said = capsys.readouterr().err
    assert "another model than the one that was measured" in said
    assert "--out report.json" in said
    assert [checkpoint.read_bytes()] == there
    assert RobustnessReport.model_validate_json(out.read_text()).attacks[0].name == "pgd"


def test_corruptions_that_were_measured_meanwhile_stay(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = read_spec(checkpoint)
    function, digest = spec.function_digest(), spec.weights_digest
    measured = MeasuredCorruptions(checkpoint, CORRUPTIONS, digest, spec, function=function)
    monkeypatch.setattr(evaluate, "show_report", lambda *_: measured.store(Output(silent=True)))
    assert run(["evaluate", str(checkpoint), *PGD]) == 0
    stored = read_spec(checkpoint).robustness
    assert stored is not None
    assert [attack.name for attack in stored.attacks] == ["pgd"]
    assert stored.corruptions == CORRUPTIONS


def test_a_stronger_report_that_was_stored_meanwhile_stays(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stronger = read_spec(checkpoint).robustness
    assert stronger is not None
    changed(checkpoint, robustness=None)
    monkeypatch.setattr(evaluate, "show_report", lambda *_: changed(checkpoint, robustness=stronger))
    assert run(["evaluate", str(checkpoint), *PGD[:-1]]) == 0
    assert read_spec(checkpoint).robustness == stronger
    assert "not stored, since it says less" in capsys.readouterr().err


def test_an_export_that_was_replaced_meanwhile_is_left_alone(tmp_path: Path) -> None:
    model = Path(shutil.copy(model_path("digits-small", "onnx"), tmp_path / "model.onnx"))
    before = Predictor(model, "cpu")
    report = before.spec.robustness
    assert report is not None
    swapped = before.spec.model_copy(update={"labels": (*before.spec.labels[:8], "9", "8")})
    body = model.read_bytes()[:-SEAL_LENGTH]
    model.write_bytes(seal(body.replace(before.spec.to_json().encode(), swapped.to_json().encode())))
    there = model.read_bytes()
    with pytest.raises(VerificationError, match="another model than the one that was measured"):
        store_in_export(model, before.function_digest, lambda _: report)
    assert model.read_bytes() == there

    without = report.model_copy(update={"worst_case_accuracy": 0.0})
    store_in_export(model, Predictor(model, "cpu").function_digest, lambda _: without)
    assert Predictor(model, "cpu").spec.robustness == without
