"""The exported model without the service: its answers, its seal, its devices and what it imports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ducat_serve.bundled import model_path
from ducat_serve.errors import DataError, DucatError, UsageError, VerificationError
from ducat_serve.predictor import SOURCE_KEY, Predictor
from ducat_serve.sealed import read_sealed, seal
from ducat_serve.spec import METADATA_KEY

WITHOUT_TORCH = """
import json, sys
if sys.argv[2] == "blocked":
    for name in ("torch", "bentoml"):
        sys.modules[name] = None  # an import of it raises ImportError
import numpy as np
from ducat_serve.predictor import Predictor
predictions = Predictor(sys.argv[1], "cpu")(np.full((2, 8, 8, 3), 128, np.uint8))
loaded = [n for n in sys.modules if n.split(".")[0] in ("torch", "bentoml") and sys.modules[n] is not None]
print(json.dumps({"label": predictions.label.tolist(), "loaded": loaded}))
"""


@pytest.fixture(scope="module")
def predictor(onnx_model: Path) -> Predictor:
    return Predictor(onnx_model, "cpu")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("count", [1, 2, 16])
def test_shapes_and_types(predictor: Predictor, images: np.ndarray, count: int) -> None:
    answer = predictor(images[:count])
    assert (answer.logits.shape, answer.logits.dtype) == ((count, 10), np.dtype(np.float32))
    assert (answer.label.shape, answer.label.dtype) == ((count,), np.dtype(np.int64))
    assert (answer.dummy_mass.shape, answer.dummy_mass.dtype) == ((count,), np.dtype(np.float32))
    assert answer.dummy_mass.min() >= 0
    assert answer.dummy_mass.max() <= 1


def test_label_is_the_largest_logit(predictor: Predictor, images: np.ndarray) -> None:
    answer = predictor(images)
    np.testing.assert_array_equal(answer.label, answer.logits.argmax(axis=1))


@pytest.mark.parametrize("threads", [1, 2])
def test_an_image_is_judged_alone(onnx_model: Path, threads: int) -> None:
    """At any place in a batch of any size that the batcher makes, its neighbours change nothing."""
    predictor = Predictor(onnx_model, "cpu", threads)
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
    alone = np.concatenate([predictor(images[row : row + 1]).logits for row in range(32)])
    assert len(np.unique(alone, axis=0)) == 32
    for size in range(2, 33):
        for start in range(0, 33 - size, max(1, size // 2)):
            together = predictor(images[start : start + size])
            np.testing.assert_allclose(together.logits, alone[start : start + size], rtol=0, atol=1e-5)
            np.testing.assert_array_equal(together.label, alone[start : start + size].argmax(axis=1))


def test_json_answer(predictor: Predictor, images: np.ndarray) -> None:
    answer = predictor(images[:3])
    spec = predictor.spec.model_copy(update={"labels": tuple(f"class {n}" for n in range(10))})
    entries = answer.to_json(spec, top_k=3)
    assert json.loads(json.dumps(entries)) == entries
    for row, entry in enumerate(entries):
        best = entry["top_k"][0]
        assert (entry["class_id"], entry["label"]) == (best["class_id"], best["label"])
        assert entry["label"] == f"class {answer.label[row]}"
        confidences = [choice["confidence"] for choice in entry["top_k"]]
        assert len(confidences) == 3
        assert confidences == sorted(confidences, reverse=True)
        assert entry["confidence"] == pytest.approx(float(answer.probabilities[row].max()))
    np.testing.assert_allclose(answer.probabilities.sum(axis=1), 1, rtol=1e-5)


def test_more_top_k_than_classes(predictor: Predictor, images: np.ndarray) -> None:
    assert len(predictor(images[:1]).to_json(predictor.spec, 1000)[0]["top_k"]) == 10


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 8, 8, 3), dtype=np.float32),
        np.zeros((1, 8, 8, 3), dtype=np.int64),
        np.zeros((8, 8, 3), dtype=np.uint8),
        np.zeros((1, 3, 8, 8), dtype=np.uint8),
        np.zeros((1, 8, 9, 3), dtype=np.uint8),
        np.zeros((1, 8, 8, 1), dtype=np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_other_arrays_are_refused(predictor: Predictor, wrong: np.ndarray) -> None:
    with pytest.raises(UsageError, match=rf"uint8 images \[N, 8, 8, 3\].* not {wrong.dtype}"):
        predictor(wrong)


def test_spec_comes_with_the_model(predictor: Predictor) -> None:
    assert (predictor.spec.network, predictor.spec.fold, predictor.spec.image_size) == (
        "resnet-small",
        "max",
        (8, 8),
    )
    assert len(predictor.source_sha256) == 64


# Devices; this suite runs where there is no GPU


def no_cuda() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" not in onnxruntime.get_available_providers()


@pytest.mark.skipif(not no_cuda(), reason="this onnxruntime has CUDA")
def test_cuda_is_an_error_and_auto_a_reasoned_fallback(onnx_model: Path) -> None:
    with pytest.raises(DucatError, match=r"--device cuda: .*no CUDA provider") as caught:
        Predictor(onnx_model, "cuda")
    assert caught.value.exit_code == 1
    automatic = Predictor(onnx_model, "auto")
    assert automatic.provider == "CPUExecutionProvider"
    assert automatic.fallback_reason is not None
    assert "no CUDA provider" in automatic.fallback_reason


def test_cpu_by_choice_is_no_fallback(predictor: Predictor) -> None:
    assert (predictor.provider, predictor.fallback_reason) == ("CPUExecutionProvider", None)


# Files that are not what `ducat export` wrote


def constant_answers(target: Path, **answers: np.ndarray) -> Path:
    """A sealed file with the ModelSpec of digits-small, whose graph answers to any image what is given."""
    bundled = onnx.load_from_string(read_sealed(model_path("digits-small", "onnx")))
    spec = {
        entry.key: entry.value for entry in bundled.metadata_props if entry.key in (METADATA_KEY, SOURCE_KEY)
    }
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [f"{name} of all"], [name]) for name in answers],
        "constant",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["batch", 8, 8, 3])],
        [onnx.helper.make_empty_tensor_value_info(name) for name in answers],
        [onnx.numpy_helper.from_array(value, f"{name} of all") for name, value in answers.items()],
    )
    for output, value in zip(graph.output, answers.values(), strict=True):
        output.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.helper.set_model_props(model, spec)
    target.write_bytes(seal(model.SerializeToString()))
    return target


RIGHT = {
    "logits": np.eye(2, 10, 3, dtype=np.float32),
    "label": np.array([3, 4]),
    "dummy_mass": np.zeros(2, np.float32),
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"logits": np.zeros((2, 3), np.float32), "label": np.array([0, 0])},
        {"logits": np.zeros((2, 20), np.float32), "label": np.array([0, 0])},
        {"logits": RIGHT["logits"][:1], "label": RIGHT["label"][:1]},  # a row for two images
        {"logits": RIGHT["logits"].astype(np.float64)},
        {"label": np.array([3, 99])},
        {"label": np.array([-7, 4])},  # Python counts it from the end
        {"label": np.array([3, 5])},
        {"label": np.array([3.0, 4.0], np.float32)},
        {"dummy_mass": np.zeros((2, 1), np.float32)},
        {"dummy_mass": None},
    ],
    ids=str,
)
def test_a_graph_that_contradicts_its_spec_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    answers = {name: value for name, value in {**RIGHT, **wrong}.items() if value is not None}
    path = constant_answers(tmp_path / "model.onnx", **answers)
    with pytest.raises(VerificationError, match="ModelSpec") as refused:
        Predictor(path, "cpu")
    assert refused.value.exit_code == 3


def test_answers_that_do_not_contradict_it_load(tmp_path: Path) -> None:
    Predictor(constant_answers(tmp_path / "model.onnx", **RIGHT), "cpu")
    unknown = np.full((2, 10), np.nan, np.float32)
    Predictor(constant_answers(tmp_path / "model.onnx", **{**RIGHT, "logits": unknown}), "cpu")


def test_a_flipped_byte_anywhere_is_found(onnx_model: Path, tmp_path: Path) -> None:
    data = onnx_model.read_bytes()
    damaged = tmp_path / "damaged.onnx"
    positions = np.random.default_rng(0).integers(0, len(data), 20).tolist()
    for position in [0, len(data) - 200, len(data) - 80, len(data) - 1, *positions]:
        changed = bytearray(data)
        changed[position] ^= 0x01
        damaged.write_bytes(changed)
        with pytest.raises(DucatError) as caught:
            Predictor(damaged)
        # Without the name of the seal, 80 bytes before the end, it is a file without a seal.
        assert caught.value.exit_code == (4 if position == len(data) - 80 else 3)


@pytest.mark.parametrize("keep", [0, 1, 50, 1000, -1, -81, -200])
def test_truncated_file(onnx_model: Path, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_model.read_bytes()[:keep])
    with pytest.raises(DataError, match="truncated"):
        Predictor(path)


@pytest.mark.parametrize("data", [b"garbage", bytes(10_000), b"\xff" * 10_000])
def test_garbage(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(DataError, match="not written by ducat"):
        Predictor(path)


def test_appended_bytes(onnx_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_model.read_bytes() + b"x")
    with pytest.raises(DataError):
        Predictor(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Cannot read") as caught:
        Predictor(tmp_path / "nowhere.onnx")
    assert caught.value.exit_code == 4
    with pytest.raises(DataError, match=r"Cannot read .*/model\.onnx"):
        Predictor(tmp_path)
    with pytest.raises(DataError, match="Cannot read"):
        Predictor(f"{'x' * 300}.onnx")


def test_a_folder_stands_for_the_export_in_it(tmp_path: Path) -> None:
    shutil.copy(model_path("digits-small", "onnx"), tmp_path / "model.onnx")
    alone = Predictor(tmp_path, "cpu")
    assert alone.spec.labels == tuple("0123456789")
    shutil.copy(model_path("digits-small", "safetensors"), tmp_path / "model.safetensors")
    assert Predictor(str(tmp_path), "cpu").graph_sha256 == alone.graph_sha256


def test_a_folder_with_the_export_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    shutil.copy(model_path("digits-small", "onnx"), tmp_path / "model.onnx")
    shutil.copy(model_path("cifar10-small", "safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(VerificationError, match="exported from another model") as caught:
        Predictor(tmp_path, "cpu")
    assert str(caught.value.next_step).startswith(f"ducat export {tmp_path}/model.safetensors")
    assert Predictor(tmp_path / "model.onnx", "cpu").spec.image_size == (8, 8), "who names the file means it"


def foreign_model() -> bytes:
    """A valid ONNX model that ducat did not write."""
    value = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["N", 8, 8, 3])
    out = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.UINT8, ["N", 8, 8, 3])
    node = onnx.helper.make_node("Identity", ["images"], ["logits"])
    graph = onnx.helper.make_graph([node], "foreign", [value], [out])
    opset = onnx.helper.make_opsetid("", 18)
    return bytes(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString())


def test_foreign_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes(foreign_model())
    with pytest.raises(DataError, match="not written by ducat"):
        Predictor(path)
    path.write_bytes(seal(foreign_model()))  # sealed by hand, yet without a ModelSpec
    with pytest.raises(DataError, match="no ducat metadata"):
        Predictor(path)
    path.write_bytes(seal(b"garbage"))
    with pytest.raises(DataError, match="not an ONNX model"):
        Predictor(path)


def test_the_seal_leaves_the_model_readable(onnx_model: Path) -> None:
    model = onnx.load_model_from_string(read_sealed(onnx_model))
    assert "ducat_sha256" in {entry.key for entry in model.metadata_props}


@pytest.mark.parametrize("torch", ["blocked", "installed"])
def test_torch_and_bentoml_are_neither_needed_nor_imported(
    onnx_model: Path, predictor: Predictor, torch: str
) -> None:
    command = [sys.executable, "-P", "-c", WITHOUT_TORCH, str(onnx_model), torch]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    expected = predictor(np.full((2, 8, 8, 3), 128, dtype=np.uint8)).label.tolist()
    assert json.loads(done.stdout) == {"label": expected, "loaded": []}


def test_onnxruntime_does_not_report_home(onnx_model: Path, tmp_path: Path) -> None:
    """Its telemetry keeps a device id below the home folder; with telemetry off there is none."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }
    code = "import sys; from ducat_serve import Predictor; Predictor(sys.argv[1], 'cpu').warm_up()"
    subprocess.run(
        [sys.executable, "-c", code, str(onnx_model)], env={**environment, "HOME": str(tmp_path)}, check=True
    )
    assert list(tmp_path.rglob("*")) == []
