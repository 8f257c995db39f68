"""What updates the weights: AdamW, rates of the backbone and the head, warm-up; and that it is resumed exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ducat_serve.errors import UsageError
from tests.support.training_runs import assert_same_run, resumed, run_until, trainer
from training.config import TrainConfig
from training.optimizer import parameters_of
from training.resolve import resolve

ADAMW: dict[str, Any] = {"optimizer": "adamw", "lr": 1e-3, "backbone_lr": 0.5, "warmup": 2, "epochs": 2}


def test_rates_of_backbone_and_head(tmp_path: Path) -> None:
    subject = trainer(tmp_path / "run", **ADAMW, ducat="off", ducat_start=None)
    optimizer = subject.step.optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    below, head = optimizer.param_groups
    assert [tuple(p.shape) for p in head["params"]] == [(10, 96), (10,)]
    everything = {id(p) for p in subject.classifier.parameters()}
    assert {id(p) for p in parameters_of(optimizer)} == everything
    assert len(below["params"]) + 2 == len(everything)


def test_warm_up_and_what_a_configuration_writes() -> None:
    config = resolve("digits", {"warmup": 2, "epochs": 10, "lr": 0.1, "backbone_lr": 0.0})
    assert config.learning_rate(1, 0, 10) == pytest.approx(0.1 / 20)
    assert config.learning_rate(2, 9, 10) == pytest.approx(0.1)
    written = config.model_dump(mode="json")
    assert TrainConfig.model_validate(written).backbone_lr == 0.0  # a rate of 0 is no rate that was left out
    assert "optimizer" not in written  # so that files of other runs stay as they were
    with pytest.raises(UsageError, match="--warmup says nothing to --schedule one-cycle"):
        resolve("digits", {"warmup": 2, "schedule": "one-cycle"})


def test_the_warm_up_of_a_recipe_is_a_share_of_the_run() -> None:
    epochs = resolve("folder:photos", {}, "folder-finetune").epochs
    found = [
        resolve("folder:photos", {"epochs": n}, "folder-finetune").warmup for n in (epochs, epochs // 5, 2)
    ]
    assert found == [5, 1, 1]
    assert resolve("folder:photos", {"epochs": 10, "warmup": 4}, "folder-finetune").warmup == 4


def test_the_rate_of_an_epoch_is_that_of_its_middle() -> None:
    """Also under a warm-up, where it was that of the end."""
    config = resolve("digits", {"warmup": 2, "epochs": 10, "lr": 0.1, "schedule": "cosine"})
    for epoch in (1, 2, 3):
        steps = [config.learning_rate(epoch, step, 1000) for step in range(1000)]
        assert config.rate_of_epoch(epoch) == pytest.approx(sum(steps) / 1000, rel=0.01)


@pytest.mark.integration
def test_a_frozen_backbone_stays_and_the_head_moves(tmp_path: Path) -> None:
    subject = trainer(
        tmp_path / "run",
        **{**ADAMW, "backbone_lr": 0.0, "epochs": 1, "warmup": 1},
        ducat="off",
        ducat_start=None,
    )
    before = {name: value.clone() for name, value in subject.classifier.network.state_dict().items()}
    subject.run()
    after = subject.classifier.network.state_dict()  # with the statistics of BatchNorm
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"fc.weight", "fc.bias"}


@pytest.mark.integration
def test_adamw_is_resumed_exactly(tmp_path: Path) -> None:
    changes: dict[str, Any] = {**ADAMW, "ducat": "off", "ducat_start": None}
    trainer(tmp_path / "whole", **changes).run()
    run_until(trainer(tmp_path / "parts", **changes), 7)
    resumed(tmp_path / "parts", **changes).run()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
