"""Which real images an export is compared on, and keeps its answers to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

import ducat_serve.library.exporting as exporting
from ducat_serve.errors import UsageError
from ducat_serve.library.exporting import export
from ducat_serve.output import Output
from ducat_serve.report import ExportPrecision
from training.data import Dataset, load_dataset
from training.data.cache import Split


def marked_by_class() -> Dataset:
    """Digits whose val images come class by class, as those of a folder do; every pixel of one is its class."""
    data = load_dataset("digits")
    labels = np.sort(data.val.labels)
    images = np.broadcast_to(labels[:, None, None, None], data.val.shape).astype(np.uint8)
    return replace(data, val=Split(images, labels))


def exported_with(
    monkeypatch: pytest.MonkeyPatch, folder: Path, precision: ExportPrecision
) -> list[NDArray[np.uint8]]:
    """The images of the gate, and those of the reference."""
    seen: list[NDArray[np.uint8]] = []

    def float32(
        _: Path, _target: Path, real: Any, *_more: object, reference: Any, **_named: object
    ) -> NoReturn:
        seen.extend((real, reference))
        raise UsageError("seen enough")

    def int8(_: Path, _target: Path, real: Any, *_more: object) -> NoReturn:
        seen.append(real)
        raise UsageError("seen enough")

    monkeypatch.setattr(exporting, "export_onnx", float32)
    monkeypatch.setattr(exporting, "export_int8", int8)
    monkeypatch.setattr("ducat_serve.library.calibrating.calibration_images", lambda *_: None)
    monkeypatch.setattr(exporting, "_training_data", lambda *_: marked_by_class())
    with pytest.raises(UsageError, match="seen enough"):
        export("digits-small", out=folder / "m.onnx", precision=precision, output=Output(silent=True))
    return seen


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_real_images_are_of_all_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: ExportPrecision
) -> None:
    monkeypatch.setattr(exporting, "REFERENCE_IMAGES", 70)
    monkeypatch.setattr(exporting, "REAL_IMAGES", 40)
    for images in exported_with(monkeypatch, tmp_path, precision):
        assert len(images) in (40, 70)
        assert set(images[:, 0, 0, 0]) == set(range(10))


def test_a_small_val_split_is_the_reference_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So files that were exported before keep their bytes."""
    _, reference = exported_with(monkeypatch, tmp_path, "float32")
    np.testing.assert_array_equal(reference, marked_by_class().val.images)
