"""Images that an evaluation keeps: 8 bits, in the ball, and what they are said to be."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
import torch

from ducat_serve.attacked_examples import MOST_EXAMPLES, AttackedExamples
from ducat_serve.cli.main import run
from ducat_serve.errors import VerificationError
from ducat_serve.predictor import Predictor
from training.attacks.ball import Ball


def test_they_are_in_the_ball_and_the_exported_model_agrees(measured_folder: Path) -> None:
    predictor = Predictor(measured_folder / "model.onnx")
    kept = predictor.examples
    assert kept is not None
    assert 2 <= len(kept.examples) <= MOST_EXAMPLES
    shape = (1, *predictor.spec.image_size, 3)
    for example in kept.examples:
        before, after = (
            np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape)
            for text in (example.original, example.attacked)
        )
        assert np.abs(before.astype(int) - after.astype(int)).max() <= 25, "0.1 of 255"
        assert predictor(before).label[0] == example.class_id
        assert (predictor(after).label[0] != example.class_id) == example.fooled
    assert {example.fooled for example in kept.examples} == {True, False}


def test_without_the_option_the_file_holds_none(measured_folder: Path, tmp_path: Path) -> None:
    """Whose images they are, they do not leave the run folder unless somebody says so."""
    assert run(["export", str(measured_folder), "--onnx", "--out", str(tmp_path / "model.onnx")]) == 0
    assert Predictor(tmp_path / "model.onnx").examples is None


def test_the_option_without_an_evaluation_is_an_error(run_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    assert not (run_folder / "examples.json").exists()
    assert run(["export", str(run_folder), "--onnx", "--examples", "--out", str(target)]) == 4
    assert not target.exists()


def test_examples_of_another_model_are_refused(measured_folder: Path) -> None:
    spec = Predictor(measured_folder / "model.onnx").spec
    text = (measured_folder / "examples.json").read_text()
    other = spec.model_copy(update={"weights_digest": "0" * 64})
    with pytest.raises(VerificationError, match="other weights"):
        AttackedExamples.from_json(text, other, "examples")
    with pytest.raises(VerificationError, match="no image of the model's size"):
        AttackedExamples.from_json(text, spec.model_copy(update={"image_size": (8, 9)}), "examples")
    with pytest.raises(VerificationError, match="larger than"):
        AttackedExamples.from_json(text + " " * 2**20, spec, "examples")


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_rounding_never_leaves_the_ball(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    original = torch.randint(0, 256, (20, 3, 8, 8), generator=generator, dtype=torch.uint8)
    ball = Ball(norm, {"linf": 8.4 / 255, "l2": 0.5, "l1": 12.0}[norm])  # type: ignore[arg-type]
    found = ball.random_start(original.float() / 255, generator)
    change = (ball.levels(original.float() / 255, found).float() - original.float()) / 255
    power = {"linf": float("inf"), "l2": 2, "l1": 1}[norm]
    assert change.flatten(1).norm(p=power, dim=1).max() <= ball.eps + 1e-6
    assert change.abs().max() > 0
