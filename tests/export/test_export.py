"""Export: the contract of model.onnx, the parity gate, and the same bytes from two processes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import ducat_serve
import export.parity as parity
from ducat_serve import atomic
from ducat_serve.bundled import model_path
from ducat_serve.checkpoint import file_sha256, read_checkpoint, read_spec, weights_digest, write_checkpoint
from ducat_serve.cli.main import main, run
from ducat_serve.deployed import Classifier, load
from ducat_serve.errors import UsageError, VerificationError
from ducat_serve.networks.allowed import allow
from ducat_serve.pairs import dummy_mass, recover
from ducat_serve.predictor import SOURCE_KEY, Predictor
from ducat_serve.sealed import SEAL_KEY, read_sealed, seal
from ducat_serve.spec import METADATA_KEY, ModelSpec, Normalisation
from ducat_serve.threat_model import ThreatModel
from export.onnx_writer import resealed
from tests.support import tiny_network
from training.data import load_dataset


def test_contract_of_the_file(onnx_model: Path, checkpoint: Path) -> None:
    model = onnx.load(onnx_model)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 10
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 18)}
    session = onnxruntime.InferenceSession(onnx_model, providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("images", "tensor(uint8)", ["batch", 8, 8, 3])
    ]
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("logits", "tensor(float)", ["batch", 10]),
        ("label", "tensor(int64)", ["batch"]),
        ("dummy_mass", "tensor(float)", ["batch"]),
    ]
    metadata = session.get_modelmeta().custom_metadata_map
    assert ModelSpec.from_json(metadata["ducat"], "test") == read_spec(checkpoint)
    assert metadata["ducat_source_sha256"] == file_sha256(checkpoint)


def test_no_trace_of_this_machine(onnx_model: Path) -> None:
    data = onnx_model.read_bytes()
    for trace in (
        str(Path.home()),
        str(Path(torch.__file__).parent),
        str(Path(parity.__file__).parent),
        "pkg.torch",
    ):
        assert trace.encode() not in data


@pytest.mark.extended
def test_two_processes_give_the_same_bytes(checkpoint: Path, onnx_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    subprocess.run(
        [sys.executable, "-P", "-m", "ducat_serve", "export", checkpoint, "--onnx", "--out", target],
        check=True,
        cwd=tmp_path,
    )
    assert target.read_bytes() == onnx_model.read_bytes()


def test_real_images_give_what_torch_gives(onnx_model: Path, checkpoint: Path) -> None:
    """The whole test split through both, with the paper's rule computed on raw 2C logits."""
    images = load_dataset("digits").test.images
    raw = load(checkpoint, folded=False)
    with torch.no_grad():
        logits = raw(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255)
    answer = Predictor(onnx_model, "cpu")(images)
    expected = np.maximum(logits[:, :10].numpy(), logits[:, 10:].numpy())
    np.testing.assert_allclose(answer.logits, expected, atol=1e-4)
    np.testing.assert_allclose(answer.dummy_mass, dummy_mass(logits).numpy(), atol=1e-5)
    assert (answer.label == recover(logits).numpy()).all()


def untrained(tmp_path: Path, fold: str, channels: int = 3, size: tuple[int, int] = (16, 12)) -> Path:
    """A checkpoint with random weights and random BatchNorm statistics, of a network that is exported fast."""
    from ducat_serve.deployed import build_classifier, numpy_weights

    allow(tiny_network.NAME)
    spec = ModelSpec(
        network=tiny_network.NAME,
        num_classes=4,
        labels=("a", "b", "c", "d"),
        channels=channels,
        image_size=size,
        normalisation=Normalisation(mean=(0.5,) * channels, std=(0.25,) * channels),
        fold=fold,
        threat_model=ThreatModel(norm="linf", eps=8 / 255),
        training={"recipe": {"dataset": "folder:none", "image_size": None, "seed": 0}, "data": "none"},
        weights_digest="",
    )
    torch.manual_seed(0)
    classifier = build_classifier(spec)
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    tensors = numpy_weights(classifier)
    path = tmp_path / f"{fold}.safetensors"
    write_checkpoint(path, tensors, spec.model_copy(update={"weights_digest": weights_digest(tensors)}))
    return path


@pytest.mark.parametrize(("fold", "channels"), [("none", 3), ("max", 1), ("lse", 3)])
def test_every_fold_and_channel_count(
    tmp_path: Path, fold: str, channels: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = untrained(tmp_path, fold, channels)
    assert run(["export", str(path), "--out", str(tmp_path / "m.onnx")]) == 0
    assert "the parity check has no real images" in capsys.readouterr().err  # said, not silent
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 12, channels), dtype=np.uint8)
    answer = Predictor(tmp_path / "m.onnx", "cpu")(images)
    with torch.no_grad():
        expected = load(path)(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255).numpy()
    np.testing.assert_allclose(answer.logits, expected, atol=1e-4)
    assert (answer.dummy_mass == 0).all() == (fold == "none")


@pytest.mark.parametrize("what", ["logits", "label", "dummy_mass", "nan"])
def test_the_gate_refuses_a_wrong_graph_and_leaves_no_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Sabotage the exported graph, not the check."""
    from export.graph import DeployGraph

    original = DeployGraph.forward

    def sabotaged(self: DeployGraph, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, label, mass = original(self, images)
        return (
            logits + 0.01 if what == "logits" else logits,
            (label + 1) % 4 if what == "label" else label,
            mass + {"dummy_mass": 0.01, "nan": torch.nan}.get(what, 0.0),
        )

    monkeypatch.setattr(DeployGraph, "forward", sabotaged)
    checkpoint, target = untrained(tmp_path, "max"), tmp_path / "model.onnx"
    target.write_text("an older export")
    assert run(["export", str(checkpoint), "--onnx", "--out", str(target)]) == 3
    found_by = "does not answer as its ModelSpec says" if what == "label" else "Parity check failed"
    assert found_by in capsys.readouterr().err
    assert target.read_text() == "an older export"
    assert set(tmp_path.iterdir()) == {checkpoint, target}


def test_lse_fold_of_huge_logits_is_exact_when_exported(tmp_path: Path) -> None:
    """Log(Exp + Exp), as exporters write logaddexp, is infinite from 88 on."""
    path = untrained(tmp_path, "lse")
    spec, tensors = read_checkpoint(path)
    tensors["fc.weight"] = 300 * tensors["fc.weight"]
    write_checkpoint(path, tensors, spec.model_copy(update={"weights_digest": weights_digest(tensors)}))
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 12, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = load(path)(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255).numpy()
    assert np.abs(expected).max() > 100
    assert run(["export", str(path), "--out", str(tmp_path / "m.onnx")]) == 0
    np.testing.assert_allclose(Predictor(tmp_path / "m.onnx", "cpu")(images).logits, expected, rtol=1e-4)


def test_the_gate_sees_a_label_that_forgets_the_dummies(
    checkpoint: Path, onnx_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is the paper's rule on raw logits, not the same fold again."""
    monkeypatch.setattr(parity, "recover", lambda logits: logits[:, :10].argmin(dim=1))
    with pytest.raises(VerificationError, match="labels differ"):
        parity.check_parity(onnx_model, load(checkpoint, folded=False))


def test_gate_covers_what_it_says(checkpoint: Path, onnx_model: Path) -> None:
    real = load_dataset("digits").val.images
    report = parity.check_parity(onnx_model, load(checkpoint, folded=False), real)
    assert report.real_images == len(real)
    assert report.images == 5 * sum(parity.BATCH_SIZES) + len(real)
    assert report.labels_compared > report.images // 2


def test_damaged_checkpoint_is_not_exported(checkpoint: Path, tmp_path: Path) -> None:
    data = bytearray(checkpoint.read_bytes())
    data[-100] ^= 1
    (tmp_path / "m.safetensors").write_bytes(data)
    assert run(["export", str(tmp_path / "m.safetensors"), "--onnx"]) == 3
    assert not (tmp_path / "model.onnx").exists()


def with_head(folder: Path, scale: float, shift: float = 0.0) -> tuple[Path, Classifier]:
    """digits-small with smaller logits, exported and in torch; in the file alone one of them is shifted."""
    model = onnx.load_from_string(read_sealed(model_path("digits-small", "onnx")))
    for tensor in model.graph.initializer:
        if tensor.name.endswith(("fc.weight", "fc.bias")):
            values = scale * onnx.numpy_helper.to_array(tensor)
            if tensor.name.endswith("bias"):
                values[0] += shift
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    entries = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {key: entries[key] for key in (METADATA_KEY, SOURCE_KEY)})
    file = folder / "model.onnx"
    file.write_bytes(seal(model.SerializeToString()))
    raw = load(model_path("digits-small", "safetensors"), folded=False)
    with torch.no_grad():
        for name, parameter in raw.named_parameters():
            if name.endswith(("fc.weight", "fc.bias")):
                parameter.mul_(scale)
    return file, raw


def test_the_tolerance_is_that_of_small_logits_too(tmp_path: Path) -> None:
    file, raw = with_head(tmp_path, 0.03)
    assert parity.check_parity(file, raw).labels_compared > 0
    file, raw = with_head(tmp_path, 0.03, shift=5e-4)
    with pytest.raises(VerificationError, match="logits differ"):
        parity.check_parity(file, raw)


def test_a_gate_that_could_compare_no_label_does_not_open(tmp_path: Path) -> None:
    file, raw = with_head(tmp_path, 1e-6)
    with pytest.raises(VerificationError, match="no label could be compared"):
        parity.check_parity(file, raw)


@pytest.mark.parametrize("name", ["model.safetensors", "model.md", "model"])
def test_an_export_never_takes_the_place_of_its_checkpoint_or_its_card(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Path(shutil.copy(model_path("digits-small", "safetensors"), tmp_path / "model.safetensors"))
    before = checkpoint.read_bytes()
    assert run(["export", str(checkpoint), "--out", str(tmp_path / name)]) == 2
    assert "does not end in .onnx" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert checkpoint.read_bytes() == before


def test_an_unknown_precision_is_refused_before_any_work(tmp_path: Path) -> None:
    wrong: Any = "bf16"
    with pytest.raises(UsageError, match="precision: 'bf16' is unknown") as refused:
        ducat_serve.export("digits-small", precision=wrong, out=tmp_path / "model.onnx")
    assert refused.value.next_step == "choose one of: 'float32', 'float16', 'int8'"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["model.onnx", "model.md"])
def test_a_place_that_cannot_be_written_is_found_before_any_work(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / folder).mkdir()
    monkeypatch.setattr("ducat_serve.library.exporting.export_onnx", lambda *_, **__: pytest.fail("work"))
    assert run(["export", "digits-small", "--out", str(tmp_path / "model.onnx")]) == 1
    assert f"{folder}: Is a directory" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / folder]


def test_sigterm_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(_: Path, target: Path, *_more: object, **_keywords: object) -> None:
        with atomic.replacing(target):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("ducat_serve.library.exporting.export_onnx", stopped)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["export", "digits-small", "--out", str(tmp_path / "model.onnx")])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_metadata_is_written_beside_what_is_there_or_in_its_place() -> None:
    file = model_path("digits-small", "onnx")

    def model() -> onnx.ModelProto:
        return onnx.load_from_string(read_sealed(file))

    assert resealed(model(), {}) == file.read_bytes()
    before = {entry.key: entry.value for entry in model().metadata_props if entry.key != SEAL_KEY}
    again = onnx.load_from_string(resealed(model(), {SOURCE_KEY: "another", "new": "one"}))
    after = {entry.key: entry.value for entry in again.metadata_props if entry.key != SEAL_KEY}
    assert after == {**before, SOURCE_KEY: "another", "new": "one"}
    assert len(again.metadata_props) == len(after) + 1


def test_what_never_downloads_has_no_option_to_forbid_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--data-dir" in shown
    assert "--offline" not in shown
