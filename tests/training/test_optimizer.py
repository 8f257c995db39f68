"""What updates the weights: AdamW, rates of the backbone and the head, warm-up; and that it is resumed exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ducat_serve.errors import UsageError
from tests.support.training_runs import assert_same_run, resumed, run_until, trainer
from training import step
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


HEAD_ALONE: dict[str, Any] = {"backbone_lr": 0.0, "epochs": 2, "ducat": "off", "ducat_start": None}


@pytest.mark.integration
@pytest.mark.parametrize("given", [{}, {"optimizer": "adamw", "lr": 1e-3}, {"ema_decay": 0.9}])
def test_the_head_is_trained_as_it_was_with_gradients_below_it(
    tmp_path: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**HEAD_ALONE, **given}
    trainer(tmp_path / "frozen", **changes).run()
    run_until(trainer(tmp_path / "parts", **changes), 7)
    resumed(tmp_path / "parts", **changes).run()
    assert_same_run(tmp_path / "frozen", tmp_path / "parts")
    monkeypatch.setattr(step, "freeze_below_head", lambda *_: None)
    whole = trainer(tmp_path / "whole", **changes)
    whole.run()
    assert all(parameter.grad is not None for parameter in whole.classifier.parameters())
    assert_same_run(tmp_path / "frozen", tmp_path / "whole")


@pytest.mark.integration
def test_a_run_with_momenta_below_a_frozen_head_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of versions that computed gradients there."""
    with monkeypatch.context() as patch:
        patch.setattr(step, "freeze_below_head", lambda *_: None)
        run_until(trainer(tmp_path / "parts", **HEAD_ALONE), 7)
    resumed(tmp_path / "parts", **HEAD_ALONE).run()
    trainer(tmp_path / "whole", **HEAD_ALONE).run()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_frozen_backbone_has_no_gradients_and_is_not_perturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = trainer(tmp_path / "run", **HEAD_ALONE, awp_gamma=0.2)
    subject.train_mode()
    network = subject.classifier.network
    before = {name: value.clone() for name, value in network.named_parameters()}
    moved: list[set[str]] = []
    loss = subject.step.loss_of

    def watched(*arguments: Any, **options: Any) -> Any:
        compute = loss(*arguments, **options)

        def computed() -> torch.Tensor:
            moved.append({n for n, value in network.named_parameters() if not torch.equal(value, before[n])})
            return compute()

        return computed

    monkeypatch.setattr(subject.step, "loss_of", watched)
    subject.train_step(subject.batches.order(1), 1, 0)
    assert moved == [set(), {"fc.weight"}]
    assert {n for n, parameter in network.named_parameters() if parameter.grad is not None} == {
        "fc.weight",
        "fc.bias",
    }


@pytest.mark.integration
def test_adamw_is_resumed_exactly(tmp_path: Path) -> None:
    changes: dict[str, Any] = {**ADAMW, "ducat": "off", "ducat_start": None}
    trainer(tmp_path / "whole", **changes).run()
    run_until(trainer(tmp_path / "parts", **changes), 7)
    resumed(tmp_path / "parts", **changes).run()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
