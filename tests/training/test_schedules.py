"""Learning rates, growing balls and averages: each a function of the place in the run, so that resuming is exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ducat_serve.checkpoint import read_checkpoint
from ducat_serve.deployed import build_classifier
from tests.support.checkpoints import SPEC
from tests.support.training_runs import around_steps, assert_same_run, resumed, run_until, trainer
from training.attacks.inner import NFGSM, PGD, CornerFGSM
from training.average import WeightAverage, warm_decay
from training.config import TrainConfig
from training.resolve import resolve
from training.schedules import Schedule, ramp_factor

EPOCHS, STEPS = 10, 4


def rates(schedule: Schedule) -> list[float]:
    config = resolve("digits", {"schedule": schedule, "epochs": EPOCHS, "lr": 0.2})
    places = [(epoch, step) for epoch in range(1, EPOCHS + 1) for step in range(STEPS)]
    return [config.learning_rate(epoch, step, STEPS) for epoch, step in places]


def test_steps_are_what_they_were() -> None:
    config = resolve("cifar10", {})
    assert config.schedule == "steps"
    assert [
        config.learning_rate(e, step, 390) for e in (100, 101, 106) for step in (0, 389)
    ] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_cosine_is_half_a_wave_in_single_steps() -> None:
    total = EPOCHS * STEPS
    literal = [0.2 * (1 + math.cos(math.pi * (n + 0.5) / total)) / 2 for n in range(total)]
    assert rates("cosine") == pytest.approx(literal, rel=1e-12)


def test_one_cycle_goes_up_for_two_fifths_and_down_to_nothing() -> None:
    found = rates("one-cycle")
    up = int(0.4 * EPOCHS * STEPS)
    assert found[0] == pytest.approx(0.2 * 0.5 / up)
    assert found[:up] == sorted(found[:up])
    assert found[up:] == sorted(found[up:], reverse=True)
    assert max(found) == pytest.approx(0.2, rel=0.05)
    assert 0 < found[-1] < 0.01


def test_milestones_belong_to_steps() -> None:
    assert resolve("cifar10", {"schedule": "cosine"}).lr_milestones == ()
    assert resolve("cifar10", {"schedule": "steps"}).lr_milestones == (100, 105)


def test_eps_grows_from_zero_in_equal_parts_and_stays() -> None:
    factors = [ramp_factor(2, epoch, step, STEPS) for epoch in (1, 2, 3, 4) for step in range(STEPS)]
    assert factors == [n / 8 for n in range(1, 9)] + [1.0] * 8
    assert {ramp_factor(None, epoch, 0, STEPS) for epoch in (1, 9)} == {1.0}


def test_the_count_of_updates_is_read_where_that_waits_for_no_gpu() -> None:
    """AveragedModel gives a copy beside the weights; one on the device "meta" has nothing that could be read."""
    average = WeightAverage(build_classifier(SPEC), 0.9, warmup=True)
    average.load_state_dict({**average.state_dict(), "n_averaged": torch.tensor(8)})
    averaged, current = [torch.ones(1)], [torch.zeros(1)]
    average._warm_average(averaged, current, torch.tensor(8, device="meta"))
    assert averaged[0].item() == pytest.approx(9 / 18)


def test_the_warm_decay() -> None:
    assert [warm_decay(0.9995, t) for t in (0, 1, 90)] == [1 / 10, 2 / 11, 91 / 100]
    assert warm_decay(0.9995, 10**6) == 0.9995
    assert warm_decay(0.5, 100) == 0.5


@pytest.mark.parametrize(
    "key", ["schedule", "eps_ramp", "ema_warmup", "clean_share", "label_smoothing", "awp_gamma"]
)
def test_a_configuration_of_an_older_version_is_what_it_was(key: str) -> None:
    """config.json of a run that began before there was this setting."""
    new = resolve("digits", {"ema_decay": 0.9})
    stored = new.model_dump(mode="json")
    del stored[key]
    assert TrainConfig.model_validate(stored) == new


@pytest.mark.integration
def test_eps_and_step_size_of_the_inner_attack_grow_in_proportion(tmp_path: Path) -> None:
    step = trainer(tmp_path / "a", eps_ramp=2).step  # 5 steps an epoch
    attacks = [step.attack_of(epoch, number, one_step=False) for epoch, number in ((1, 0), (2, 4), (3, 0))]
    whole = trainer(tmp_path / "b").step.attack_of(1, 0, one_step=False)
    assert isinstance(whole, PGD)
    assert attacks[1:] == [whole, whole]
    assert isinstance(attacks[0], PGD)
    assert attacks[0].ball.eps == pytest.approx(whole.ball.eps / 10)
    assert attacks[0].step_size == pytest.approx(whole.step_size / 10)
    one = step.attack_of(1, 4, one_step=True)
    assert isinstance(one, NFGSM)
    assert one.eps == pytest.approx(whole.ball.eps / 2)
    guided = trainer(tmp_path / "c", method="guided", eps_ramp=2).step.attack_of(1, 4, one_step=True)
    assert isinstance(guided, CornerFGSM)
    assert guided.ball.eps == pytest.approx(whole.ball.eps / 2)


@pytest.mark.integration
@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_the_optimizer_gets_the_rate_of_its_step(tmp_path: Path, schedule: str) -> None:
    subject = trainer(tmp_path / "run", schedule=schedule, epochs=2, ducat="off", ducat_start=None)
    seen: list[float] = []

    def recorded(_: int, step: Callable[[], Tensor]) -> Tensor:
        loss = step()
        seen.append(subject.step.optimizer.param_groups[0]["lr"])
        return loss

    around_steps(subject, recorded)
    subject.run()
    expected = [subject.config.learning_rate(e, s, 5) for e in (1, 2) for s in range(5)]
    assert seen == expected
    assert len(set(seen)) > 5


@pytest.mark.integration
@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "cosine", "eps_ramp": 3, "ema_decay": 0.9995, "ema_warmup": True},
        {"schedule": "one-cycle", "awp_gamma": 0.01, "label_smoothing": 0.1, "clean_share": 0.3},
        {"attack_steps": 2, "eps_ramp": 4, "ducat": "folded"},
    ],
    ids=["cosine", "one-cycle", "two steps"],
)
def test_stopped_inside_an_epoch_and_resumed_is_the_same_run(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    trainer(tmp_path / "whole", **changes).run()
    run_until(trainer(tmp_path / "run", **changes), 8)
    resumed(tmp_path / "run", **changes).run()
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.integration
def test_an_average_with_a_warm_up_forgets_the_beginning(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "run", ema_decay=0.9995, ema_warmup=True)
    history: list[Tensor] = []

    def recorded(_: int, step: Callable[[], Tensor]) -> Tensor:
        loss = step()
        history.append(whole.classifier.network.state_dict()["fc.weight"].clone())
        return loss

    around_steps(whole, recorded)
    whole.run()
    literal = history[0].double()
    for t, weights in enumerate(history[1:], 1):
        decay = (1 + t) / (10 + t)
        literal = decay * literal + (1 - decay) * weights.double()
    kept = torch.from_numpy(read_checkpoint(tmp_path / "run" / "last.safetensors")[1]["fc.weight"].copy())
    torch.testing.assert_close(kept.double(), literal, rtol=1e-5, atol=1e-6)
