"""The floor: never above the worst case, found by attacks on the robust tower alone, and worth what it promises."""

from __future__ import annotations

import itertools

import pytest
import torch

from ducat_serve.deployed import Deployed
from ducat_serve.errors import UsageError
from ducat_serve.networks.two_towers import TwoTowers
from ducat_serve.output import Output
from ducat_serve.report import RobustnessReport
from ducat_serve.spec import Switch
from ducat_serve.threat_model import ThreatModel
from tests.support.towers import SWITCH, Patches, rows_of, two_patches
from training.attacks.ball import Ball
from training.attacks.base import TargetModel, Task
from training.attacks.criteria import misclassified, unsure
from training.attacks.switch import SwitchAttack
from training.batches import DeviceSplit
from training.evaluation.evaluate import Plan, Subject, evaluate
from training.evaluation.floor import _result
from training.evaluation.stages import attack_named, suite
from training.randomness import stream

EPS = 0.05
LABELS = torch.arange(120) % 4
# The label's row is brighter by this: with eps on both sides of a margin, 0.1 and less can be undone.
CONTRAST = torch.linspace(0.02, 0.4, 120)


def measure(model: Deployed, name: str = "quick") -> RobustnessReport:
    images = (rows_of(LABELS, CONTRAST) * 255).round().byte()
    subject = Subject(model, DeviceSplit(images, LABELS), tuple("abcd"), "digest", "rows", "test")
    attacks = tuple(suite(name, TargetModel(model.fold, 4)))
    plan = Plan(ThreatModel(norm="linf", eps=EPS), attacks, batch_size=64, sanity=False)
    return evaluate(subject, plan, Output(silent=True))


@pytest.fixture(scope="module")
def report() -> RobustnessReport:
    return measure(two_patches())


def test_the_floor_is_at_most_the_worst_case(report: RobustnessReport) -> None:
    assert report.floor is not None
    assert 0 < report.floor.accuracy <= report.worst_case_accuracy < report.clean_accuracy
    low, high = report.floor.interval
    assert low < report.floor.accuracy < high
    assert [attack.name for attack in report.floor.attacks] == ["apgd-ce", "closest-first", "mapped-margin"]
    [check] = report.sanity
    assert check.passed
    assert check.figures["both towers"] == pytest.approx(report.worst_case_accuracy)


@pytest.mark.parametrize("switch", [SWITCH, SWITCH.model_copy(update={"divisor": 0.6})], ids=["own", "one"])
def test_the_floor_against_a_closed_form(switch: Switch) -> None:
    """Only the means of the four rows count, so the corners of the ball in them can all be tried."""
    report = measure(two_patches(switch=switch))
    images = (rows_of(LABELS, CONTRAST) * 255).round() / 255
    criterion = unsure(switch)
    carried = 0
    for image, label in zip(images, LABELS, strict=True):
        moves = torch.tensor(list(itertools.product((-EPS, 0, EPS), repeat=4))).view(-1, 1, 4, 1)
        raw = Patches(4, 5.0)((image + moves).clamp(0, 1))
        carried += not criterion(raw, label.expand(len(moves))).any().item()
    assert report.floor is not None
    assert report.floor.accuracy == pytest.approx(carried / 120, abs=1.5 / 120)


def test_what_breaks_both_towers_counts_against_the_floor() -> None:
    """Three of four images held alone; one of these and the fourth fell to attacks on both."""
    carried, right = torch.tensor([True, True, True, False]), torch.tensor([True, True, False, True])
    floor, check = _result(carried, right, ())
    assert floor.accuracy == 0.5
    assert floor.found_by_others == 0.25
    assert check.passed
    assert not _result(torch.ones(200, dtype=torch.bool), torch.arange(200) >= 4, ())[1].passed


def test_a_switch_that_never_overrules_leaves_the_fragile_tower() -> None:
    """With a threshold of nearly 1 the standard tower answers, and the floor says what is left: nothing."""
    never = Switch(scale=0.1, power=1, shift=0, threshold=0.99)
    report = measure(two_patches(switch=never))
    assert report.floor is not None
    assert report.floor.accuracy == 0


def test_the_switch_attack_beats_a_gradient_that_stops_at_the_switch() -> None:
    """Where both towers are sure the real fold has no gradient; the attack that knows the towers gets through."""
    sharp = Switch(scale=200, power=1, shift=0, threshold=0.3)
    model = Deployed(TwoTowers(Patches(4, 500.0), Patches(4, 5.0)), sharp).eval()
    images, labels = rows_of(LABELS, torch.full((120,), 0.06)), LABELS
    ball, criterion = Ball("linf", EPS), misclassified(sharp)
    found = SwitchAttack(steps=20)(Task(model, images, labels, ball, criterion, stream(0, "switch")))
    with torch.no_grad():
        assert criterion(model.classifier(found), labels).all()
    assert (found - images).abs().max() <= EPS + 1e-6

    blocked = images.clone().requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(model(blocked), labels)
    (gradient,) = torch.autograd.grad(loss, blocked)
    with torch.no_grad():
        assert not criterion(model.classifier(images + EPS * gradient.sign()), labels).any()


def test_it_is_for_two_towers_only() -> None:
    assert not SwitchAttack().applies(TargetModel("max", 10))
    with pytest.raises(UsageError, match="two-tower"):
        attack_named("switch", TargetModel("none", 10))
    assert "switch" in [attack.name for attack in suite("standard", TargetModel(SWITCH, 10))]
    assert measure(Deployed(Patches(4, 5.0), "none").eval()).floor is None
