"""The parity gate of two-tower models: as strict as that of each tower, however sharp the switch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ducat_serve.deployed import load
from ducat_serve.errors import VerificationError
from ducat_serve.predictor import Predictor
from ducat_serve.spec import Switch
from export.onnx_writer import export_onnx
from export.parity import check_parity
from training.data import load_dataset
from training.mixture.build import Fitted, write_mixture
from training.mixture.dial import Setting

# The dial has such settings. Standardised logits of ten classes reach 3, so that the map reaches 128.
SHARP = Switch(scale=128 / 3**3, power=3, shift=-0.5, threshold=0.3)


def mixture(folder: Path, switch: Switch = SHARP) -> Path:
    """The bundled model for digits as both towers."""
    target = folder / "model.safetensors"
    fitted = Fitted(Setting(switch, 0.5, 0.5), "--give-up 2", 100, 0.9, 0.5, 0.1, None)
    write_mixture(load("digits-small"), load("digits-small"), fitted, target)
    return target


def test_labels_are_compared_however_sharp_the_switch(tmp_path: Path) -> None:
    """Its log probabilities are large, and say nothing of how far rounding may move a decision."""
    real = load_dataset("digits").val.images[:64]
    _, parity = export_onnx(mixture(tmp_path), tmp_path / "model.onnx", real, "float16")
    assert parity.labels_compared >= 0.9 * parity.images


def test_one_divisor_of_all_images_is_in_the_file(tmp_path: Path) -> None:
    switch = Switch(scale=2, power=2, shift=-0.5, threshold=0.3, divisor=4.0)
    checkpoint = mixture(tmp_path, switch)
    images = load_dataset("digits").val.images[:64]
    export_onnx(checkpoint, tmp_path / "model.onnx", images)
    found = Predictor(tmp_path / "model.onnx", "cpu")(images)
    expected = load(checkpoint)(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    assert found.label.tolist() == expected.argmax(dim=1).tolist()
    np.testing.assert_allclose(found.logits, expected.numpy(), atol=1e-3)


def test_a_robust_tower_that_is_another_is_refused(tmp_path: Path) -> None:
    checkpoint = mixture(tmp_path)
    export_onnx(checkpoint, tmp_path / "model.onnx")
    raw = load(checkpoint, folded=False)
    (bias,) = [p for name, p in raw.named_parameters() if "robust" in name and name.endswith("fc.bias")]
    with torch.no_grad():
        bias[3] += 0.05
    with pytest.raises(VerificationError, match="logits differ"):
        check_parity(tmp_path / "model.onnx", raw)
