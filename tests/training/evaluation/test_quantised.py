"""int8 files under attack: the copy computes what the file does, its gradients lead on, and the file is the judge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from ducat_serve.cli.main import run
from ducat_serve.deployed import Deployed, towers_of
from ducat_serve.errors import VerificationError
from ducat_serve.output import Output
from ducat_serve.predictor import Predictor, create_session
from ducat_serve.quantisation import Quantisation
from export.calibration import Calibration
from export.onnx_writer import export_int8
from tests.support.towers import exported_towers
from training.attacks.ball import Ball
from training.attacks.base import Task, value_and_grad
from training.attacks.criteria import misclassified
from training.attacks.losses import margin
from training.attacks.pgd import PGD
from training.attacks.square import Square
from training.batches import to_levels
from training.data import load_dataset
from training.distributed.processes import ProcessGroup
from training.evaluation.prepare import Request, prepare
from training.evaluation.quantised import ThroughCopy, differentiable, require_same_answers
from training.evaluation.quantised_copy import QuantisedCopy, UnknownOperator
from training.randomness import stream

FLOAT, UINT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8


def record_of(predictor: Predictor) -> Quantisation:
    assert predictor.spec.quantisation is not None
    return predictor.spec.quantisation


@pytest.fixture
def file(int8_folder: Path, tmp_path: Path) -> Path:
    """An int8 file with its checkpoint beside it, to be measured."""
    for name in ("model-int8.onnx", "model-int8.md", "model.safetensors"):
        shutil.copy(int8_folder / name, tmp_path / name)
    return tmp_path / "model-int8.onnx"


def pixels(images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255


def test_the_copy_answers_what_the_file_does(int8_folder: Path) -> None:
    """Integer and float kernels round a few values to neighbouring levels: at most 5 % of the logits' spread here."""
    path = int8_folder / "model-int8.onnx"
    record = record_of(Predictor(path, "cpu"))
    images = load_dataset("digits").test.images
    copied = QuantisedCopy(onnx.load(path), record.pixels, record.raw_logits[0])
    found = copied(pixels(images)).detach().numpy()
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_value_info(record.raw_logits[0], FLOAT, None))
    session, _ = create_session(model.SerializeToString(), "cpu")
    (expected,) = session.run([record.raw_logits[0]], {"images": images})
    spread = expected.std()
    assert found.shape == expected.shape == (359, 20)
    assert np.abs(found - expected).max() < 0.05 * spread
    assert np.median(np.abs(found - expected)) < 0.005 * spread
    half = expected.shape[1] // 2
    assert (found.argmax(1) % half == expected.argmax(1) % half).mean() > 0.995


def hand_made() -> onnx.ModelProto:
    """Pixels in 8 bits (scale 0.25, zero point 2), times 3 and -3, in 8 bits again (scale 1, from 0), then the mean."""

    def constant(name: str, value: object, dtype: type) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(value, dtype), name)

    nodes = [
        helper.make_node("QuantizeLinear", ["pixels", "s1", "z1"], ["q1"]),
        helper.make_node("DequantizeLinear", ["q1", "s1", "z1"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["weight"], axis=0),
        helper.make_node("Conv", ["a", "weight", "b"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "s2", "z2"], ["q2"]),
        helper.make_node("DequantizeLinear", ["q2", "s2", "z2"], ["d"]),
        helper.make_node("ReduceMean", ["d", "axes"], ["logits"], keepdims=0),
    ]
    constants = [
        constant("s1", 0.25, np.float32),
        constant("z1", 2, np.uint8),
        constant("w", [[[[6]]], [[[-6]]]], np.int8),
        constant("sw", [0.5, 0.5], np.float32),
        constant("zw", [0, 0], np.int8),
        constant("b", [0.0, 0.0], np.float32),
        constant("s2", 1.0, np.float32),
        constant("z2", 0, np.uint8),
        constant("axes", [2, 3], np.int64),
    ]
    images = helper.make_tensor_value_info("pixels", FLOAT, ["N", 1, 1, 2])
    logits = helper.make_tensor_value_info("logits", FLOAT, ["N", 2])
    return helper.make_model(helper.make_graph(nodes, "hand", [images], [logits], constants))


def test_values_are_rounded_and_gradients_are_not() -> None:
    """0.3 becomes 0.25 and 0.75, times 3, rounds to 1; 0.7 becomes 0.75 and 2.25 rounds to 2. The second channel is
    negative and cut off at 0, where it has no gradient."""
    images = torch.tensor([[[[0.3, 0.7]]]], requires_grad=True)
    answers = QuantisedCopy(hand_made(), "pixels", "logits")(images)
    assert answers.tolist() == [[1.5, 0.0]]
    (first,) = torch.autograd.grad(answers[0, 0], images, retain_graph=True)
    assert first.tolist() == [
        [[[1.5, 1.5]]]
    ]  # the mean of 3 times each pixel, as if nothing had been rounded
    (second,) = torch.autograd.grad(answers[0, 1], images)
    assert second.tolist() == [[[[0.0, 0.0]]]]


def test_an_operator_that_is_not_known_is_named() -> None:
    model = hand_made()
    model.graph.node[-1].op_type = "ReduceLogSumExp"
    with pytest.raises(UnknownOperator, match="ReduceLogSumExp"):
        QuantisedCopy(model, "pixels", "logits")


def test_attacks_see_the_files_own_answers_and_the_copys_gradients(int8_folder: Path) -> None:
    path = int8_folder / "model-int8.onnx"
    predictor = Predictor(path, "cpu")
    model = differentiable(path.read_bytes(), predictor, "cpu")
    data = load_dataset("digits").test
    images, labels = pixels(data.images[:40]), torch.from_numpy(data.labels[:40].copy())
    assert np.array_equal(to_levels(images), data.images[:40])
    own = predictor(data.images[:40])
    with torch.no_grad():
        assert np.allclose(model(images).numpy(), own.logits, atol=1e-5)
    loss = margin(model.fold)
    evaluated, gradient = value_and_grad(model, images, labels, labels, loss, misclassified(model.fold))
    assert torch.equal(evaluated.success, torch.from_numpy(own.label) != labels)
    assert gradient.flatten(1).any(dim=1).all()


def test_values_are_the_files_where_the_copy_says_something_else() -> None:
    """The file answers 7 to everything; the gradient is that of the copy."""

    def sevens(images: torch.Tensor, name: str) -> torch.Tensor:
        assert name == "logits"
        return torch.full((len(images), 2), 7.0)

    model = ThroughCopy(QuantisedCopy(hand_made(), "pixels", "logits"), sevens, "logits")
    images = torch.tensor([[[[0.3, 0.7]]]], requires_grad=True)
    answers = model(images)
    assert answers.tolist() == [[7.0, 7.0]]
    (gradient,) = torch.autograd.grad(answers[0, 0], images)
    assert gradient.tolist() == [[[[1.5, 1.5]]]]


def test_two_towers_are_attacked_as_two(tmp_path: Path) -> None:
    """Both heads are found, the standard tower's first, and the switch between them decides as in the file."""
    exported_towers(tmp_path)
    data = load_dataset("digits")
    calibration = Calibration(data.train.images[:64].copy(), attacked=0, seed=0)
    path = tmp_path / "model-int8.onnx"
    spec, agreement = export_int8(tmp_path / "model.safetensors", path, data.val.images, calibration)
    assert agreement.same_class >= 0.9
    predictor = Predictor(path, "cpu")
    assert len(record_of(predictor).raw_logits) == 2
    model = differentiable(path.read_bytes(), predictor, "cpu")
    towers = towers_of(model)
    assert towers is not None
    assert model.fold == spec.fold
    images = data.test.images[:60]
    require_same_answers(model, predictor, images)
    robust = towers.robust(pixels(images)).argmax(dim=1).numpy()
    assert (robust == data.test.labels[:60]).mean() > 0.9  # the other tower knows nothing
    images_ = pixels(images[:10]).requires_grad_(True)
    (gradient,) = torch.autograd.grad(model.classifier(images_).sum(), images_)
    assert gradient.flatten(1).any(dim=1).all()


def test_a_fold_that_is_not_the_files_is_refused(int8_folder: Path) -> None:
    path = int8_folder / "model-int8.onnx"
    predictor = Predictor(path, "cpu")
    images = load_dataset("digits").test.images[:50]
    model = differentiable(path.read_bytes(), predictor, "cpu")
    require_same_answers(model, predictor, images)

    class Turned(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            turned: torch.Tensor = -model(pixels)
            return turned

    with pytest.raises(VerificationError, match="heads and the fold"):
        require_same_answers(Deployed(Turned(), "none").eval(), predictor, images)


def test_what_is_attacked_is_what_was_checked(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read once: another one in its place a moment later would not have been checked."""
    read_bytes = Path.read_bytes

    def read_and_remove(path: Path) -> bytes:
        contents = read_bytes(path)
        if path == file:
            path.unlink()
        return contents

    monkeypatch.setattr(Path, "read_bytes", read_and_remove)
    request = Request(file, attacks=("pgd",), max_examples=5, device="cpu")
    prepared = prepare(request, Output(silent=True), ProcessGroup(), torch.device("cpu"))
    assert not file.exists()
    assert prepared.subject.gradients == "copy"


def test_its_own_report_is_measured_on_the_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What broke it breaks the file in ONNX Runtime, and the card has both precisions."""
    broken = file.parent / "broken"
    command = ["evaluate", str(file), "--attack", "pgd", "--max-examples", "20"]
    capsys.readouterr()
    assert run([*command, "--save-adversarial", str(broken), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    report = Predictor(file, "cpu").spec.robustness
    assert report is not None
    assert report.model_dump(mode="json") == printed
    assert (report.precision, report.artefact, report.gradients) == ("int8", "onnx", "copy")
    assert [attack.name for attack in report.attacks] == ["pgd"]
    assert report.attacks[0].gradient_steps > 0
    assert report.worst_case_accuracy < report.clean_accuracy
    card = file.with_suffix(".md").read_text()
    assert "differentiable copy" in card
    assert f"| int8, this file | {report.clean_accuracy:.1%} | {report.worst_case_accuracy:.1%} |" in card
    assert "| float32, the checkpoint |" in card

    from safetensors.numpy import load_file

    (kept,) = broken.glob("*.safetensors")
    tensors = load_file(kept)
    shown = (tensors["images"] * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    answers = Predictor(file, "cpu")(shown)
    wrong = (answers.label != tensors["labels"]).mean()
    assert wrong == pytest.approx(1 - report.worst_case_accuracy)


def test_gradients_find_more_than_scores(int8_folder: Path) -> None:
    path = int8_folder / "model-int8.onnx"
    model = differentiable(path.read_bytes(), Predictor(path, "cpu"), "cpu")
    data = load_dataset("digits").test
    images, labels = pixels(data.images[:30]), torch.from_numpy(data.labels[:30].copy())
    ball, criterion = Ball("linf", 0.2, eight_bit=True), misclassified(model.fold)
    left = {}
    for attack in (PGD(), Square(queries=20)):
        found = attack(Task(model, images, labels, ball, criterion, stream(0, attack.name)))
        with torch.no_grad():
            left[attack.name] = int((~criterion(model.classifier(found), labels)).sum())
    assert left["pgd"] < left["square"]


def test_a_graph_that_cannot_be_copied_is_attacked_by_its_scores(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.evaluation import quantised_copy

    monkeypatch.delitem(quantised_copy.OPERATORS, "ReduceMean")
    assert run(["evaluate", str(file), "--attack", "transfer", "--max-examples", "10"]) == 0
    said = capsys.readouterr().err
    assert "no attack with gradients: its graph has the operator ReduceMean" in said
    report = Predictor(file, "cpu").spec.robustness
    assert report is not None
    assert report.gradients is None
    assert "scores only" in report.summary()
