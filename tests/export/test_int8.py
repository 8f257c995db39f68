"""int8 exports: what is quantised and what is not, on which images, and what is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ducat_serve.bundled import model_path
from ducat_serve.checkpoint import read_spec
from ducat_serve.cli.main import run
from ducat_serve.cpu import has_int8_dot_product
from ducat_serve.deployed import load
from ducat_serve.errors import DucatError, VerificationError
from ducat_serve.library.calibrating import calibration_images
from ducat_serve.library.exporting import _real_images
from ducat_serve.output import Output
from ducat_serve.predictor import Device, Predictions, Predictor
from ducat_serve.quantisation import Quantisation
from ducat_serve.spec import ModelSpec
from export.agreement import check_agreement
from export.calibration import Calibration
from export.onnx_writer import export_int8
from export.quantise import quantise
from training.data import load_dataset


@pytest.fixture
def folder(int8_folder: Path) -> Path:
    return int8_folder


def record_of(file: Path) -> Quantisation:
    record = Predictor(file, "cpu").spec.quantisation
    assert record is not None
    return record


def test_it_is_small_and_answers_much_as_before(folder: Path) -> None:
    full, small = (Predictor(folder / name, "cpu") for name in ("model.onnx", "model-int8.onnx"))
    images = load_dataset("digits").test.images
    a, b = full(images), small(images)
    assert (a.label == b.label).mean() > 0.97
    assert (b.label == b.logits.argmax(axis=1)).all()
    sizes = [(folder / name).stat().st_size for name in ("model-int8.onnx", "model.onnx")]
    assert sizes[0] <= 0.3 * sizes[1]


def test_head_fold_and_preprocessing_stay_in_float32(folder: Path) -> None:
    """From the pixels backwards and from what the heads answer forwards nothing is rounded, nor what the head takes."""
    record = record_of(folder / "model-int8.onnx")
    graph = onnx.load(folder / "model-int8.onnx").graph
    makers = {name: node for node in graph.node for name in node.output}
    rounded = {"QuantizeLinear", "DequantizeLinear"}

    def before(name: str, until: str = "images") -> list[onnx.NodeProto]:
        """Every node that a tensor is computed by, from another tensor on."""
        if name == until or name not in makers:
            return []
        return [makers[name], *(node for source in makers[name].input for node in before(source, until))]

    assert not rounded & {node.op_type for node in before(record.pixels)}
    (raw,) = record.raw_logits
    head = makers[raw]
    assert head.op_type == "Gemm"
    weights = {i.name: i.data_type for i in graph.initializer}
    assert [weights[name] for name in head.input[1:]] == [onnx.TensorProto.FLOAT] * 2
    fold = [node for output in graph.output for node in before(output.name, raw)]
    assert {"Max", "ArgMax"} <= {node.op_type for node in fold}
    assert not rounded & {node.op_type for node in fold}
    body = [node for node in before(raw, record.pixels) if node.op_type == "Conv"]
    assert body
    assert {makers[name].op_type for node in body for name in node.input} == {"DequantizeLinear"}


def test_the_same_checkpoint_gives_the_same_bytes_and_json_says_how_it_was_quantised(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    command = ["export", str(folder), "--precision", "int8", "--out", str(tmp_path / "again.onnx")]
    assert run([*command, "--json"]) == 0
    assert (tmp_path / "again.onnx").read_bytes() == (folder / "model-int8.onnx").read_bytes()
    printed = json.loads(capsys.readouterr().out)
    assert printed["quantisation"]["reduced_range"] is True
    assert printed["parity"]["same_class"] >= 0.95


def test_nothing_measured_is_inherited_but_it_stands_beside(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = Predictor(folder / "model-int8.onnx", "cpu").spec
    measured = read_spec(folder / "model.safetensors").robustness
    assert spec.robustness is None
    assert spec.quantisation is not None
    assert spec.quantisation.float32_robustness == measured
    assert measured is not None
    card = (folder / "model-int8.md").read_text()
    assert "| int8, this file | robustness not measured |" in card
    assert f"| float32, the checkpoint | {measured.clean_accuracy:.1%} |" in card
    capsys.readouterr()
    assert run(["inspect", str(folder / "model-int8.onnx")]) == 0
    assert "robustness not measured" in capsys.readouterr().out


def test_calibration_is_on_train_images_half_of_them_attacked(folder: Path) -> None:
    train = load_dataset("digits").train
    model = load(folder)
    calibration = calibration_images(model, train, Output(silent=True))
    known = {image.tobytes() for image in train.images}
    is_clean = np.array([image.tobytes() in known for image in calibration.images])
    assert len(calibration.images) == 256
    assert is_clean[1::2].all()
    assert is_clean[::2].mean() < 0.1  # those that were wrong from the start are left as they were
    eps = model.spec.threat_model.eps * 255
    nearest = [
        np.abs(train.images.astype(int) - image).max(axis=(1, 2, 3)).min() for image in calibration.images[:8]
    ]
    assert max(nearest) <= eps
    record = record_of(folder / "model-int8.onnx")
    assert (record.calibration_digest, record.calibration_images) == (calibration.digest, 256)
    assert record.attacked_images == 128


def test_ranges_are_those_of_the_calibration_images(folder: Path, tmp_path: Path) -> None:
    """On black images no activation is seen that matters. Such a file answers otherwise, and is refused."""
    black = Calibration(np.zeros((4, 8, 8, 3), np.uint8), attacked=0, seed=0)
    with pytest.raises(VerificationError, match="agrees with its checkpoint on only"):
        export_int8(folder, tmp_path / "model.onnx", load_dataset("digits").val.images, black)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"label": np.roll}, "is not the best of its logits"),
        ({"logits": lambda logits, _: np.full_like(logits, np.nan)}, "NaN or infinity"),
        ({"logits": lambda rows, _: rows[::-1], "label": lambda rows, _: rows[::-1]}, "its sums overflow"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    changed: dict[str, Callable[[np.ndarray[Any, Any], int], np.ndarray[Any, Any]]],
    says: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What this CPU answers is changed; the same graph without optimisation is left alone."""
    original = Predictor.__call__

    def answer(self: Predictor, images: np.ndarray[Any, Any]) -> Predictions:
        found = original(self, images)
        if predictors and self is predictors[0]:  # not while it is opened, which tries it out
            found = found._replace(
                **{name: change(getattr(found, name), 1) for name, change in changed.items()}
            )
        return found

    predictors: list[Predictor] = []

    def opened(path: Path, device: Device, *, optimised: bool = True) -> Predictor:
        predictor = Predictor(path, device, optimised=optimised)
        predictors.append(predictor)
        return predictor

    monkeypatch.setattr(Predictor, "__call__", answer)
    monkeypatch.setattr("export.agreement.Predictor", opened)
    raw = load(folder, folded=False)
    with pytest.raises(VerificationError, match=says):
        check_agreement(folder / "model-int8.onnx", raw, load_dataset("digits").val.images[:50])


def test_reduced_range_is_seven_bits(folder: Path, tmp_path: Path) -> None:
    data = load_dataset("digits")
    calibration = Calibration(data.train.images[:64].copy(), attacked=0, seed=0)
    largest = {}
    for reduced in (True, False):
        target = tmp_path / f"{reduced}.onnx"
        model = onnx.load(folder / "model.onnx")
        quantised = quantise(model, calibration.images, reduced_range=reduced)
        onnx.save(quantised.model, target)
        stored = [numpy_helper.to_array(i) for i in quantised.model.graph.initializer]
        largest[reduced] = max(int(np.abs(a.astype(int)).max()) for a in stored if a.dtype == np.int8)
    assert largest == {True: 64, False: 127}


def test_quantising_says_nothing_and_silences_nobody(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ONNX Runtime's advice is not given, and what other libraries log meanwhile is heard."""
    load_onnx = onnx.load

    def load_and_log(path: Path) -> onnx.ModelProto:
        logging.getLogger("another.library").warning("heard")
        return load_onnx(path)

    model = onnx.load(folder / "model.onnx")
    monkeypatch.setattr("export.quantise.onnx.load", load_and_log)
    with caplog.at_level(logging.WARNING):
        quantise(model, load_dataset("digits").train.images[:8].copy(), reduced_range=True)
    assert {record.getMessage() for record in caplog.records} == {"heard"}


@pytest.mark.parametrize("dot_product", [True, False])
def test_an_export_has_seven_bits_and_says_so_on_every_cpu(
    dot_product: bool,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It may be served by another CPU than this one, whose sums would overflow with 8 bits."""
    flags = "avx512_vnni" if dot_product else "avx2"
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    monkeypatch.setattr(has_int8_dot_product, "__defaults__", (tmp_path / "cpuinfo",))
    assert has_int8_dot_product() is dot_product
    out = tmp_path / "model.onnx"
    assert run(["export", str(folder), "--precision", "int8", "--out", str(out)]) == 0
    assert "weights of 7 bits" in capsys.readouterr().out
    stored = [numpy_helper.to_array(i) for i in onnx.load(out).graph.initializer]
    assert max(int(np.abs(a.astype(int)).max()) for a in stored if a.dtype == np.int8) == 64
    assert record_of(out).reduced_range is True
    assert "weights of 7 bits" in out.with_suffix(".md").read_text()
    assert run(["inspect", str(out)]) == 0
    assert "7 bits, for every CPU" in capsys.readouterr().out


def test_a_network_without_layers_before_its_head_is_refused() -> None:
    images = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["N", 2])
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 2])
    nodes = [
        onnx.helper.make_node("Cast", ["images"], ["float"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("MatMul", ["float", "weight"], ["logits"]),
    ]
    weight = numpy_helper.from_array(np.eye(2, dtype=np.float32), "weight")
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "ducat", [images], [logits], [weight]))
    with pytest.raises(DucatError, match="no convolution or linear layer before its head"):
        quantise(model, np.zeros((1, 2), np.uint8), reduced_range=True)


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor\t: 0\nflags\t\t: sse avx2 avx_vnni\n", True),
        ("flags\t\t: avx2 avx512f avx512_vnni\n", True),
        ("flags\t\t: sse avx2\n", False),
        ("flags\t\t: avx2 avx_vnni\n\nflags\t\t: avx2\n", False),  # one core without it
        ("Features\t: fp asimd asimddp\n", True),
        ("nothing of the kind\n", False),
    ],
)
def test_the_cpus_flags_say_whether_it_multiplies_int8(cpuinfo: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert has_int8_dot_product(tmp_path / "cpuinfo") is expected
    assert has_int8_dot_product(tmp_path / "missing") is False


def test_without_images_to_calibrate_on_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = model_path("cifar10-small", "safetensors")
    empty, out = tmp_path / "data", tmp_path / "out"
    empty.mkdir()
    out.mkdir()
    command = ["export", str(checkpoint), "--precision", "int8", "--data-dir", str(empty)]
    assert run([*command, "--out", str(out / "model.onnx")]) == 4
    said = capsys.readouterr().err
    assert "int8 is calibrated on train images" in said
    assert "--data-dir" in said.split("Next:")[1]
    assert list(out.iterdir()) == []


def test_images_of_other_classes_are_no_images_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    """Drift would be seen beside what the model answered to images that it was never meant for."""
    assert _real_images(model_path("cifar10-small", "safetensors"), "digits", None, Output()) is None
    assert "other classes than the model" in capsys.readouterr().err


def test_other_classes_calibrate_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = model_path("cifar10-small", "safetensors")
    command = ["export", str(checkpoint), "--precision", "int8", "--dataset", "digits"]
    assert run([*command, "--out", str(tmp_path / "model.onnx")]) == 2
    assert "other classes" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_an_exported_file_is_no_checkpoint(
    precision: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(folder / "model-int8.onnx"), "--precision", precision, "--out", "x.onnx"]) != 0
    assert "checkpoint" in capsys.readouterr().err
    assert not Path("x.onnx").exists()


def test_a_report_of_another_model_does_not_stand_beside(folder: Path) -> None:
    spec = Predictor(folder / "model-int8.onnx", "cpu").spec
    record = spec.quantisation
    assert record is not None
    assert record.float32_robustness is not None
    other = record.float32_robustness.model_copy(update={"weights_digest": "0" * 64})
    forged = spec.model_copy(update={"quantisation": record.model_copy(update={"float32_robustness": other})})
    with pytest.raises(VerificationError, match="belongs to another one"):
        ModelSpec.from_json(forged.to_json(), "forged")
    with pytest.raises(VerificationError, match="says how it was quantised"):
        ModelSpec.from_json(spec.model_copy(update={"quantisation": None}).to_json(), "forged")
