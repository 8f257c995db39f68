"""int8 files under attack: the copy computes what the file does, its gradients lead on, and the file is the judge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from ducat_serve.checkpoint import weights_digest, write_checkpoint
from ducat_serve.cli.main import run
from ducat_serve.deployed import Deployed, build_classifier, load, numpy_weights, towers_of
from ducat_serve.errors import VerificationError
from ducat_serve.output import Output
from ducat_serve.predictor import Predictor, create_session
from ducat_serve.quantisation import Quantisation
from ducat_serve.sealed import read_sealed
from ducat_serve.spec import ModelSpec, Normalisation
from ducat_serve.threat_model import ThreatModel
from export.calibration import Calibration
from export.onnx_writer import export_int8, export_onnx
from export.quantise import quantise
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
from training.evaluation.quantised_copy import QuantisedCopy
from training.evaluation.quantised_operators import OPERATORS, UnknownOperator
from training.evaluation.settings import EvaluationSettings
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
    # The mean of 3 times each pixel, as if nothing had been rounded.
    assert first.tolist() == [[[[1.5, 1.5]]]]
    (second,) = torch.autograd.grad(answers[0, 1], images)
    assert second.tolist() == [[[[0.0, 0.0]]]]


def test_an_operator_that_is_not_known_is_named() -> None:
    model = hand_made()
    model.graph.node[-1].op_type = "ReduceLogSumExp"
    with pytest.raises(UnknownOperator, match="ReduceLogSumExp"):
        QuantisedCopy(model, "pixels", "logits")


def test_a_graph_that_goes_on_from_unscaled_images_is_refused() -> None:
    """Only their number and size may be asked for: anything else would have no gradient in the copy."""
    model = hand_made()
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=FLOAT),
        helper.make_node("Div", ["float", "s1"], ["pixels"]),
    ]
    kept = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *kept, helper.make_node("Add", ["logits", "float"], ["more"])])
    model.graph.input[0].name = "images"
    assert QuantisedCopy(model, "pixels", "logits")(torch.zeros(1, 1, 1, 2)).shape == (1, 2)
    with pytest.raises(UnknownOperator, match="past their scaling"):
        QuantisedCopy(model, "pixels", "more")


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.parametrize("network", ["timm:test_vit", "timm:test_convnext"])
def test_the_copy_follows_networks_of_others(network: str, tmp_path: Path) -> None:
    """Against ONNX Runtime, and its gradient against that of the network before it was rounded."""
    torch.manual_seed(0)
    spec = ModelSpec(
        network=network,
        num_classes=3,
        labels=("a", "b", "c"),
        channels=3,
        image_size=(32, 32),
        normalisation=Normalisation(mean=(0.5,) * 3, std=(0.25,) * 3),
        fold="max",
        threat_model=ThreatModel(norm="linf", eps=8 / 255),
        training={},
        weights_digest="",
    )
    tensors = numpy_weights(build_classifier(spec))
    spec = spec.model_copy(update={"weights_digest": weights_digest(tensors)})
    write_checkpoint(tmp_path / "model.safetensors", tensors, spec)
    export_onnx(tmp_path / "model.safetensors", tmp_path / "model.onnx")
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    quantised = quantise(onnx.load(tmp_path / "model.onnx"), images, reduced_range=True)
    (name,) = quantised.raw_logits
    shown = pixels(images).requires_grad_(True)
    found = QuantisedCopy(quantised.model, quantised.pixels, name)(shown)
    model = onnx.ModelProto()
    model.CopyFrom(quantised.model)
    if name not in {output.name for output in model.graph.output}:
        model.graph.output.append(helper.make_tensor_value_info(name, FLOAT, None))
    session, _ = create_session(model.SerializeToString(), "cpu")
    (expected,) = session.run([name], {"images": images})
    assert np.abs(found.detach().numpy() - expected).max() < 0.05 * expected.std()
    raw = load(tmp_path / "model.safetensors", folded=False)
    (gradient,) = torch.autograd.grad(found[:, 0].sum(), shown)
    (smooth,) = torch.autograd.grad(raw(shown)[:, 0].sum(), shown)
    alike = torch.cosine_similarity(gradient.flatten(1), smooth.flatten(1))
    assert alike.min() > 0.8


FLOATS = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
WHOLE = np.array([[7, -7, 3], [1, 9, -2]])


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"),
    [
        ("Cast", [FLOATS], {"to": onnx.TensorProto.INT64}),
        ("Div", [WHOLE, np.array([2, 2, -2])], {}),
        ("Div", [FLOATS, np.float32(3)], {}),
        ("Expand", [FLOATS[:, :1], np.array([2, 3, 4])], {}),
        ("Expand", [FLOATS, np.array([1, 1])], {}),
        ("Gather", [FLOATS, np.array(-1)], {"axis": 1}),
        ("Gather", [FLOATS, np.array([[0, 2], [-3, 1]])], {"axis": 1}),
        ("Gather", [WHOLE, np.array([1])], {}),
        ("Gelu", [FLOATS], {}),
        ("Gelu", [FLOATS], {"approximate": "tanh"}),
        ("LayerNormalization", [FLOATS, FLOATS[0, 0], FLOATS[1, 0]], {"epsilon": 0.1}),
        ("LayerNormalization", [FLOATS, FLOATS[1]], {"axis": 1}),
        ("Pow", [np.abs(FLOATS), np.float32(1.5)], {}),
        ("Range", [np.array(1), np.array(8), np.array(3)], {}),
        ("Shape", [FLOATS], {}),
        ("Shape", [FLOATS], {"start": -2, "end": -1}),
        ("Slice", [FLOATS, np.array([1]), np.array([2**62]), np.array([2]), np.array([2])], {}),
        ("Slice", [FLOATS, np.array([0, -2]), np.array([1, -1])], {}),
        ("Softmax", [FLOATS], {}),
        ("Softmax", [FLOATS], {"axis": 1}),
        ("Split", [FLOATS, np.array([1, 3])], {"axis": 2}),
        ("Split", [FLOATS], {"axis": 1, "num_outputs": 2}),
        ("Sqrt", [np.abs(FLOATS)], {}),
        ("Squeeze", [FLOATS[:1, :, :1], np.array([0, -1])], {}),
        ("Squeeze", [FLOATS[:1, :, :1]], {}),
    ],
)
def test_operators_are_those_of_onnxruntime(
    operator: str,
    inputs: list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]],
    attributes: dict[str, Any],
) -> None:
    arrays = [np.asarray(array) for array in inputs]
    names = [f"input{number}" for number in range(len(arrays))]
    outputs = [f"output{number}" for number in range(2 if operator == "Split" else 1)]
    kinds = [helper.np_dtype_to_tensor_dtype(array.dtype) for array in arrays]
    returns = {"Cast": onnx.TensorProto.INT64, "Shape": onnx.TensorProto.INT64}.get(operator, kinds[0])
    graph = helper.make_graph(
        [helper.make_node(operator, names, outputs, **attributes)],
        "one",
        [helper.make_tensor_value_info(n, k, a.shape) for n, k, a in zip(names, kinds, arrays, strict=True)],
        [helper.make_tensor_value_info(name, returns, None) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session, _ = create_session(model.SerializeToString(), "cpu", 1)
    expected = session.run(None, dict(zip(names, arrays, strict=True)))
    given = {a.name: helper.get_attribute_value(a) for a in graph.node[0].attribute}
    found = OPERATORS[operator]([torch.from_numpy(array.copy()) for array in arrays], given)
    answers = (found,) if isinstance(found, torch.Tensor) else found
    assert len(answers) == len(expected)
    for answer, right in zip(answers, expected, strict=True):
        assert answer.numpy().dtype == right.dtype
        assert answer.shape == right.shape
        assert np.allclose(answer.numpy(), right, atol=1e-6)


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


def test_two_towers_are_attacked_as_two(towers_folder: Path, tmp_path: Path) -> None:
    """Both heads are found, the standard tower's first, and the switch between them decides as in the file."""
    data = load_dataset("digits")
    calibration = Calibration(data.train.images[:64].copy(), attacked=0, seed=0)
    path = tmp_path / "model-int8.onnx"
    spec, agreement = export_int8(towers_folder / "model.safetensors", path, data.val.images, calibration)
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

    def read_and_remove(path: Path) -> bytes:
        contents = read_sealed(path)
        path.unlink()
        return contents

    monkeypatch.setattr("training.evaluation.loading.read_sealed", read_and_remove)
    request = Request(file, EvaluationSettings(attacks=("pgd",), max_examples=5, device="cpu"))
    prepared = prepare(request, Output(silent=True), ProcessGroup(), torch.device("cpu"))
    assert not file.exists()
    assert prepared.subject.gradients == "copy"


def test_its_own_report_is_measured_on_the_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What broke it breaks the file in ONNX Runtime, and the card has both precisions."""
    broken = file.parent / "broken"
    command = ["evaluate", str(file), "--attack", "pgd", "--max-examples", "12"]
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
    from training.evaluation import quantised_operators

    monkeypatch.delitem(quantised_operators.OPERATORS, "ReduceMean")
    assert run(["evaluate", str(file), "--attack", "transfer", "--max-examples", "10"]) == 0
    said = capsys.readouterr().err
    assert "no attack with gradients: its graph has the operator ReduceMean" in said
    report = Predictor(file, "cpu").spec.robustness
    assert report is not None
    assert report.gradients is None
    assert "scores only" in report.summary()
