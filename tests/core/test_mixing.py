"""Which images a mixture is fitted, attacked and measured on, and what is said where a tower has learnt them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from torch import Tensor

import ducat_serve.library.mixing as mixing
from ducat_serve.errors import UsageError
from ducat_serve.library.mixing import Towers, draw_curve, mix
from ducat_serve.output import Output
from tests.support.towers import tower_checkpoint
from training.attacks.apgd import APGD
from training.attacks.losses import margin
from training.data import Dataset, load_dataset
from training.data.cache import Split
from training.evaluation.evaluate import Plan, Subject

QUIET = Output(silent=True)
ROBUST = "digits-small"


def sorted_by_class() -> Dataset:
    """Digits whose val images come class by class, as those of a folder do."""
    data = load_dataset("digits")
    order = np.argsort(data.val.labels, kind="stable")
    return replace(data, val=Split(data.val.images[order], data.val.labels[order]))


@pytest.mark.parametrize("max_examples", [None, 110])
def test_the_curve_attacks_images_of_all_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_examples: int | None
) -> None:
    seen: list[Tensor] = []

    def watched(subject: Subject, _plan: Plan, _output: Output) -> NoReturn:
        seen.append(subject.data.labels)
        raise UsageError("seen enough")

    monkeypatch.setattr("training.mixture.answers.SEARCHES", {"apgd-margin": APGD(margin, 2)})
    monkeypatch.setattr(mixing, "load_training_data", lambda *_, **__: sorted_by_class())
    monkeypatch.setattr(mixing, "_ATTACKED_IMAGES", 40)
    monkeypatch.setattr(mixing, "evaluate", watched)
    towers = Towers(tower_checkpoint(tmp_path / "standard.safetensors"), ROBUST, max_examples=max_examples)
    with pytest.raises(UsageError, match="seen enough"):
        draw_curve(towers, tmp_path / "dial", output=QUIET)
    assert seen[0].bincount(minlength=10).min() > 0


def test_a_standard_tower_that_has_learnt_val_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def enough(*_: object) -> NoReturn:
        raise UsageError("seen enough")

    monkeypatch.setattr(mixing, "answers_of", enough)
    training = {
        "recipe": {"dataset": "digits", "seed": 0, "val_fraction": 0.2},
        "data_digest": load_dataset("digits").digest,
    }
    standard = tower_checkpoint(tmp_path / "standard.safetensors", training=training)
    with pytest.raises(UsageError, match="seen enough"):
        mix(Towers(standard, ROBUST), out=tmp_path / "model.safetensors")
    said = " ".join(capsys.readouterr().err.split())
    assert "the standard tower was trained on some of the val images" in said


@pytest.mark.parametrize("towers", ["digits-small", ("digits-small", "cifar10-small"), None])
def test_what_is_no_towers_is_refused(towers: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no Towers") as refused:
        mix(towers, out=tmp_path / "model.safetensors", output=QUIET)
    assert refused.value.next_step == 'mix(Towers("accurate", "robust"), out="mixed/model.safetensors")'


def test_the_second_model_is_not_taken_for_the_place(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        mix(Towers(ROBUST, ROBUST), str(tmp_path / "model.safetensors"))  # type: ignore[call-arg]
