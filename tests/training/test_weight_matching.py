"""What the head of a file is taken for, where its width alone does not tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.int8 import digits_with_dummies
from training.pretrained import Pretrained
from training.weight_matching import Matched, match


def weights(outputs: int) -> dict[str, Tensor]:
    head = {"fc.weight": torch.rand(outputs, 3), "fc.bias": torch.rand(outputs)}
    return {"body.weight": torch.rand(3, 3), **head}


def matched(theirs: int, ours: int, *, from_dummies: bool = False, to_dummies: bool) -> Matched:
    return match(
        weights(theirs), weights(ours), "fc", "w.pth", from_dummies=from_dummies, to_dummies=to_dummies
    )


@pytest.mark.parametrize(
    ("theirs", "from_dummies", "ours", "to_dummies", "is_kept"),
    [
        (10, False, 10, False, True),
        (10, False, 20, True, True),  # 10 classes, and their dummies
        (10, False, 20, False, False),  # 10 of 20 classes
        (20, False, 20, False, True),
        (20, False, 20, True, False),  # classes would become dummies
        (20, True, 20, True, True),
        (20, True, 20, False, False),  # dummies would become classes
        (20, True, 40, True, False),
    ],
)
def test_a_head_is_kept_where_it_answers_the_same_classes(
    theirs: int, from_dummies: bool, ours: int, to_dummies: bool, is_kept: bool
) -> None:
    found = matched(theirs, ours, from_dummies=from_dummies, to_dummies=to_dummies)
    assert found.brings_head == is_kept
    assert ("a fresh one is trained" in found.notes[-1]) != is_kept


def test_a_head_of_the_same_width_and_another_meaning_is_named() -> None:
    assert matched(20, 20, to_dummies=True).notes[-1] == (
        "their head of 20 outputs is of 20 classes, not of 10 classes and their dummies: a fresh one is trained"
    )


def test_a_checkpoint_of_ours_says_whether_it_has_dummies(tmp_path: Path) -> None:
    assert Pretrained.read(digits_with_dummies(tmp_path / "model.safetensors")).has_dummies
    torch.save(weights(20), tmp_path / "w.pth")
    assert not Pretrained.read(tmp_path / "w.pth").has_dummies
