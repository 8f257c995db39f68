"""`ducat inspect` of a two-tower model: of each tower, who trained it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ducat_serve.cli.main import run
from ducat_serve.deployed import load
from tests.support.towers import SWITCH, tower_checkpoint
from training.mixture.build import Fitted, write_mixture
from training.mixture.dial import Setting


def test_a_robust_tower_of_others_is_not_said_of_the_standard_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = {"recipe": {"method": "standard", "ducat": "off", "epochs": 24, "seed": 0}, "data": "digits"}
    others = {"recipe": {"method": "imported", "pretrained": "robust.pth"}, "data": "digits"}
    standard = load(tower_checkpoint(tmp_path / "standard.safetensors", training=ours))
    robust = load(tower_checkpoint(tmp_path / "robust.safetensors", training=others))
    fitted = Fitted(Setting(SWITCH, 0.5, 0.5), "--give-up 2", 100, 0.9, 0.5, 0.1, "ducat mix standard robust")
    write_mixture(standard, robust, fitted, tmp_path / "model.safetensors")
    assert run(["inspect", str(tmp_path / "model.safetensors")]) == 0
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "standard tower: method standard, ducat off" in said
    assert "standard tower: recipe 24 epochs, seed 0" in said
    assert "robust tower: method imported: trained by others" in said
    assert "robust tower: weights robust.pth" in said
    assert "mixed by ducat mix standard robust" in said
    assert not [line for line in said if line.startswith(("method", "trained by"))]
