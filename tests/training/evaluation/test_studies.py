"""The studies beside the worst case: sanity, dummy mass, rejection, legacy; and models that misbehave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from ducat_serve.deployed import Deployed
from ducat_serve.output import Output
from ducat_serve.report import RobustnessReport
from ducat_serve.threat_model import ThreatModel
from training.attacks.ball import Ball, distance
from training.attacks.base import Attack, TargetModel, Task
from training.attacks.criteria import misclassified
from training.attacks.pair_margin import PairMargin
from training.attacks.pgd import PGD
from training.attacks.square import Square
from training.batches import DeviceSplit
from training.evaluation import sanity
from training.evaluation.evaluate import Plan, Subject, evaluate
from training.evaluation.examples import Examples
from training.evaluation.first_order import gradients_foretell
from training.evaluation.legacy import legacy_2c_accuracy
from training.evaluation.runner import Batches, Runner
from training.evaluation.stages import attack_named
from training.randomness import stream

THREAT = ThreatModel(norm="linf", eps=0.1)


def measure(model: Deployed, data: DeviceSplit, *attacks: Attack, **more: Any) -> RobustnessReport:
    """A report on C classes with these attacks; ``more`` is of the plan."""
    with torch.no_grad():
        width = model(data.images[:1].float() / 255).shape[1]
    subject = Subject(model, data, tuple(str(i) for i in range(width)), "digest", "test", "test")
    return evaluate(subject, Plan(THREAT, attacks, batch_size=32, **more), Output())


# --- sanity checks --------------------------------------------------------------------------------------------


class Steps(nn.Module):
    """A linear classifier behind a staircase: no gradient anywhere, and easy to fool all the same."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        level = images.mean(dim=(1, 2, 3))
        if self.masked:
            level = (level * 1000).round() / 1000 + 0 * level
        return torch.stack([level - 0.45, 0.45 - level], dim=1)


class Bright(nn.Module):
    """Class 0 where an image is bright."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        level = images.mean(dim=(1, 2, 3))
        return torch.stack([level - 0.55, 0.55 - level], dim=1)


@pytest.mark.parametrize("masked", [True, False])
def test_masked_gradients_are_called_out(masked: bool, capsys: pytest.CaptureFixture[str]) -> None:
    grey = torch.full((40, 3, 4, 4), 128, dtype=torch.uint8)
    data = DeviceSplit(grey, torch.zeros(40, dtype=torch.long))
    model = Deployed(Steps(masked), "none").eval()
    report = measure(model, data, PGD())
    failed = {check.name for check in report.failed_checks}
    assert ("gradient masking suspected" in report.summary()) == masked
    assert ("scores are weaker than gradients" in failed) == masked
    assert ("a large eps leaves nothing" in failed) == masked
    assert len(report.sanity) == 5  # no surrogate, no check of transfer
    if not masked:
        assert failed == set()


@pytest.mark.parametrize("masked", [True, False])
def test_slow_attacks_follow_where_a_sanity_check_fails(
    masked: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = torch.full((40, 3, 4, 4), 128, dtype=torch.uint8)
    data = DeviceSplit(grey, torch.zeros(40, dtype=torch.long))
    model = Deployed(Steps(masked), "none").eval()
    report = measure(model, data, PGD(step_size=1e-4), on_doubt=(Square(queries=300),))
    assert [attack.name for attack in report.attacks] == ["pgd", *["square"] * masked]
    left = report.attacks[-1].worst_case_accuracy
    assert left == (0 if masked else 1)  # such short steps break nothing
    assert ("Going on to slow attacks" in capsys.readouterr().err) == masked


def test_few_images_say_nothing_about_masking_so_slow_attacks_follow(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without checks the gradients may mislead as well as not; of an image that fell nothing is left to be found."""
    grey = torch.full((19, 3, 4, 4), 128, dtype=torch.uint8)
    data = DeviceSplit(grey, torch.zeros(19, dtype=torch.long))
    for masked in (True, False):
        model = Deployed(Steps(masked), "none").eval()
        report = measure(model, data, PGD(), on_doubt=(Square(queries=300),))
        assert report.sanity == ()
        assert report.summary().endswith("gradient masking not checked")
        assert report.worst_case_accuracy == 0
        assert [attack.name for attack in report.attacks] == ["pgd", *["square"] * masked]
        assert ("not checked: too few images" in capsys.readouterr().err) == masked


class Ripples(nn.Module):
    """A linear classifier of pixels with ripples so fine that they change no answer, and every gradient."""

    def __init__(self, height: float) -> None:
        super().__init__()
        self.height = height

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        level = (images + self.height * torch.sin(12_000 * images)).mean(dim=(1, 2, 3))
        return torch.stack([level - 0.45, 0.45 - level], dim=1)


@pytest.mark.parametrize("height", [0.0, 0.0016])
def test_gradients_that_say_nothing_of_small_steps_are_called_out(height: float) -> None:
    images = torch.randint(120, 137, (40, 3, 8, 8), dtype=torch.uint8, generator=stream(0, "ripples"))
    data = DeviceSplit(images, torch.zeros(40, dtype=torch.long))
    report = measure(Deployed(Ripples(height), "none").eval(), data, PGD())
    assert report.clean_accuracy == 1
    check = next(check for check in report.sanity if check.name == "gradients foretell small steps")
    assert check.passed == (height == 0)
    share = check.figures["images where it does"]
    assert share == 1 if height == 0 else share < 0.5


def test_a_promise_below_rounding_is_no_promise() -> None:
    images = torch.full((40, 3, 4, 4), 128, dtype=torch.uint8)
    data = DeviceSplit(images, torch.zeros(40, dtype=torch.long))
    model = Deployed(Steps(masked=False), "none").eval()
    tiny = Ball("linf", 0.5 / 255, eight_bit=True)  # of which nothing is left in images of 8 bits
    for ball, is_said in ((Ball("linf", 0.1), True), (Ball("linf", 1e-6), False), (tiny, False)):
        runner = Runner(model, data, ball, 0, Batches(32, Output()), Output())
        found = gradients_foretell(runner, torch.arange(40), fewest=20)
        assert (found is not None) == is_said


def test_one_image_of_slack_is_one_image() -> None:
    """1 - 49 / 50 is more than 1 / 50 in floating point."""
    from training.evaluation.sanity import _compare

    for broken, passed in ((0, True), (1, True), (2, False)):
        left = torch.arange(50)
        check = _compare("n", "e", ("strong", left), ("then weak", left[broken:]), 50)
        assert check.passed is passed
        assert check.figures == {"strong": 1, "then weak": (50 - broken) / 50}


@dataclass(frozen=True)
class Breaks(Attack):
    """Of 40 images that differ in the first pixel, brightens those whose number is in a range."""

    name: ClassVar[str] = "breaks"
    numbers: range

    def __call__(self, task: Task) -> torch.Tensor:
        number = (255 * task.images[:, 0, 0, 0]).round().long() - 100
        broken = (number >= self.numbers.start) & (number < self.numbers.stop)
        return task.ball.project(task.images, task.images + 0.1 * broken.view(-1, 1, 1, 1))


@pytest.mark.parametrize(("few", "passed"), [(range(10, 21), True), (range(10, 22), False)])
def test_fewer_steps_may_break_other_images_and_not_more(
    few: range, passed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 steps break images 0 to 9; another random start breaks others, which says nothing of gradients."""
    images = torch.full((40, 3, 4, 4), 128, dtype=torch.uint8)
    images[:, 0, 0, 0] = 100 + torch.arange(40)
    data = DeviceSplit(images, torch.ones(40, dtype=torch.long))
    model = Deployed(Bright(), "none").eval()
    monkeypatch.setattr(sanity, "APGD", lambda _loss, steps: Breaks(range(10) if steps == 100 else few))
    report = measure(model, data, PGD(step_size=1e-4))
    check = next(check for check in report.sanity if check.name == "more steps help the attack")
    assert check.figures == {"100 steps": 0.75, "10 steps": 1 - len(few) / 40}
    assert check.passed is passed


def test_transfer_that_beats_white_box_is_called_out() -> None:
    grey = torch.full((40, 3, 4, 4), 128, dtype=torch.uint8)
    data = DeviceSplit(grey, torch.zeros(40, dtype=torch.long))
    surrogate = Deployed(Steps(False), "none").eval()
    model = Deployed(Steps(True), "none").eval()
    report = measure(model, data, PGD(), surrogate=surrogate)
    check = next(c for c in report.sanity if c.name == "transfer is weaker than white-box")
    assert not check.passed
    assert check.figures == {"apgd": 1, "then transfer": 0}


# --- dummy mass and rejection ---------------------------------------------------------------------------------


class TwoRoads(nn.Module):
    """Wrong as soon as the image is bright enough. The red channel alone raises dummy mass.

    An attack that does not care brightens all channels and gives itself away; one that does leaves red alone.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        red, green = images[:, 0].mean(dim=(1, 2)), images[:, 1].mean(dim=(1, 2))
        right = 0.06 - (green - 0.5) - 2 * (red - 0.5)
        dummy = -4 + 60 * (red - 0.5)
        zero = torch.zeros_like(red)
        return torch.stack([right, zero, zero - 9, dummy], dim=1)


def two_roads(count: int) -> tuple[Deployed, DeviceSplit]:
    generator = torch.Generator().manual_seed(0)
    images = torch.full((count, 3, 2, 2), 128, dtype=torch.uint8)
    images[:, 0] += torch.randint(-3, 4, (count, 1, 1), generator=generator).to(torch.uint8)
    model = Deployed(TwoRoads(), "max").eval()
    return model, DeviceSplit(images, torch.zeros(count, dtype=torch.long))


@dataclass(frozen=True)
class Brighten(Attack):
    name: ClassVar[str] = "brighten"

    def __call__(self, task: Task) -> torch.Tensor:
        return task.images + 0.09


def test_dummy_mass_detects_only_those_who_do_not_hide() -> None:
    model, data = two_roads(60)

    report = measure(model, data, Brighten(), sanity=False, val=data)
    mass = report.dummy_mass
    assert report.clean_accuracy == 1
    assert report.worst_case_accuracy == 0
    assert mass is not None
    assert mass.auroc == 1.0
    assert mass.auroc_adaptive is not None
    assert mass.auroc_adaptive < 0.5
    clean_red = data.images[:, 0, 0, 0].double() / 255
    dummies = np.exp(-9) + np.exp(-4 + 60 * (clean_red.numpy() - 0.5))
    right = np.exp(0.06 - (128 / 255 - 0.5) - 2 * (clean_red.numpy() - 0.5))
    assert mass.clean_mean == pytest.approx((dummies / (dummies + 1 + right)).mean(), rel=1e-4)

    by = {(r.score, r.flagged_val): r for r in report.rejection}
    assert set(by) == {(s, f) for s in ("dummy_mass", "confidence") for f in (0.01, 0.05, 0.10)}
    for result in report.rejection:
        assert result.flagged_clean <= result.flagged_val + 1e-9  # val and test are the same images here
        assert result.correct_or_flagged_clean == 1.0
    assert by["dummy_mass", 0.05].correct_or_flagged < 0.2  # the detector that looked perfect


def test_flagging_keeps_what_an_attack_cannot_hide() -> None:
    """Dummy mass rises with the same brightness that fools the model: every fooling image is flagged."""

    class OneRoad(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            level = images.mean(dim=(1, 2, 3))
            zero = torch.zeros_like(level)
            return torch.stack([0.06 - (level - 0.5), zero, zero - 9, -4 + 60 * (level - 0.5)], 1)

    _, data = two_roads(60)
    model = Deployed(OneRoad(), "max").eval()
    report = measure(model, data, PGD(), sanity=False, val=data)
    assert report.worst_case_accuracy == 0
    by = {(r.score, r.flagged_val): r for r in report.rejection}
    assert by["dummy_mass", 0.10].correct_or_flagged == 1.0


def test_a_laxer_threshold_lets_through_at_least_as_many() -> None:
    """Brighter images are answered wrongly, and the more surely the brighter: the ball decides how surely."""

    class Surer(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            level = images.mean(dim=(1, 2, 3))
            return torch.stack([20 * (0.55 - level), 20 * (level - 0.55)], dim=1)

    grey = torch.full((30, 3, 2, 2), 128, dtype=torch.uint8)
    data = DeviceSplit(grey, torch.zeros(30, dtype=torch.long))
    # Margins of clean val images: 1.9 for 93 of them, 0.35 for 7. In the ball a wrong answer reaches 0.48.
    levels = torch.tensor([128] * 93 + [138] * 7, dtype=torch.uint8)
    val = DeviceSplit(levels.view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous(), torch.zeros(100).long())
    model = Deployed(Surer(), "none").eval()
    report = evaluate(
        Subject(model, data, ("dark", "bright"), "digest", "test", "test"),
        Plan(ThreatModel(norm="linf", eps=0.06), (PGD(),), sanity=False, val=val),
        Output(),
    )
    by = {r.flagged_val: r for r in report.rejection}
    shares = [by[share].correct_or_flagged for share in (0.01, 0.05, 0.10)]
    assert shares == sorted(shares)
    assert shares == [0, 0, 1]


def test_flagging_is_also_attacked_from_diversified_starts() -> None:
    """Wrong only in a corner of the ball that the margin's gradient does not point to, and a losing logit does."""

    class Corner(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            inside = (images.flatten(1) > 0.6).all(dim=1).float()
            level = images.mean(dim=(1, 2, 3))
            return torch.stack([2 + 0 * level, 5 * inside + 0 * level, level - 9, -9 - level], dim=1)

    grey = torch.full((30, 3, 2, 2), 128, dtype=torch.uint8)
    data = DeviceSplit(grey, torch.zeros(30, dtype=torch.long))
    report = measure(Deployed(Corner(), "max").eval(), data, Brighten(), sanity=False, val=data)
    by = {r.score: r for r in report.rejection if r.flagged_val == 0.10}
    assert report.attacks[-1].worst_case_accuracy == 1  # of `Brighten`
    assert by["dummy_mass"].correct_or_flagged < 0.6
    assert by["confidence"].correct_or_flagged < 0.6


# --- the legacy measure ---------------------------------------------------------------------------------------


def test_legacy_stops_at_the_labels_own_dummy() -> None:
    """Darker: the own dummy wins, which recovery forgives. Brighter: really wrong. Raw gradients point to dark."""

    class Sink(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            level = images.mean(dim=(1, 2, 3)) - 0.5
            own = torch.full_like(level, 2.0)
            return torch.stack([own, 1.9 + 1.1 * level, 1.9 - 40 * level, -9 + 0 * level], dim=1)

    grey = torch.full((30, 3, 2, 2), 128, dtype=torch.uint8)
    data = DeviceSplit(grey, torch.zeros(30, dtype=torch.long))
    model = Deployed(Sink(), "max").eval()
    runner = Runner(model, data, Ball("linf", 0.1), 0, Batches(16, Output()), Output())
    report = measure(model, data, PairMargin(1), sanity=False)
    assert report.worst_case_accuracy == 0
    assert report.legacy_2c_accuracy == 1.0
    assert legacy_2c_accuracy(runner, Examples.of(runner), ("apgd-ce", "targeted", "square")) == 1.0


def test_without_dummies_legacy_is_the_plain_accuracy_under_attack() -> None:
    grey = torch.full((30, 3, 4, 4), 128, dtype=torch.uint8)
    data = DeviceSplit(grey, torch.zeros(30, dtype=torch.long))
    model = Deployed(Steps(False), "none").eval()
    near = Runner(model, data, Ball("linf", 0.1), 0, Batches(16, Output()), Output())
    far = Runner(model, data, Ball("linf", 0.01), 0, Batches(16, Output()), Output())
    assert legacy_2c_accuracy(near, Examples.of(near), ("apgd-ce",)) == 0.0
    assert legacy_2c_accuracy(far, Examples.of(far), ("apgd-ce",)) == 1.0


# --- models that misbehave ------------------------------------------------------------------------------------


def test_nan_answers_to_adversarial_images_count_as_wrong_and_lose_no_report() -> None:
    class Fragile(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            level = images.mean(dim=(1, 2, 3))
            raw = torch.stack([0.6 - level, level - 0.6, level - 9, level - 9], dim=1)
            return torch.where((level > 0.51).unsqueeze(1), torch.nan, raw)

    data = DeviceSplit(torch.full((24, 3, 2, 2), 128, dtype=torch.uint8), torch.zeros(24, dtype=torch.long))
    model = Deployed(Fragile(), "max").eval()
    report = measure(model, data, Square(), val=data)
    assert report.worst_case_accuracy == 0
    assert report.dummy_mass is None  # nothing that can be counted
    assert {r.correct_or_flagged for r in report.rejection} == {0.0}  # NaN is wrong, and above no threshold
    searched = measure(model, data, sanity=False, val=data)  # by the attacks of the study alone
    assert searched.broken_by_checks == 24
    assert {r.correct_or_flagged for r in searched.rejection} == {0.0}
    assert measure(model, data, PGD(), sanity=False).legacy_2c_accuracy == 0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_nan_gradients_do_not_push_an_image_out_of_the_ball(norm: str) -> None:
    """sqrt has an infinite slope at 0, and inf - inf is NaN; the logits themselves are finite."""

    class Rooted(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            level = images.mean(dim=(1, 2, 3))
            kink = (images - images.detach()).abs().flatten(1).sum(dim=1).sqrt() * 0
            return torch.stack([1 + level + kink, level], dim=1)

    images = torch.full((5, 3, 2, 2), 0.5)
    model = Deployed(Rooted(), "none").eval()
    for name in ("pgd", "apgd-ce", "square-warm"):
        found = attack_named(name, TargetModel("none", 2))(
            Task(
                model,
                images,
                torch.zeros(5, dtype=torch.long),
                Ball(norm, 0.1),  # type: ignore[arg-type]
                misclassified("none"),
                stream(0, "t"),
            )
        )
        assert found.isfinite().all()
        assert (model(found).argmax(dim=1) == 0).all()  # never really wrong, so never counted as such


def test_l2_steps_keep_their_length_where_the_loss_is_saturated() -> None:
    """Confident models have cross entropies whose gradients are tiny; squares of them vanish in float32."""
    for scale in (1.0, 1e-13, 1e-25, 1e-37):
        gradient = scale * torch.randn(3, 3, 4, 4, generator=stream(0, "g"))
        grey = torch.full((3, 3, 4, 4), 0.5)
        moved = Ball("l2", 1.0).ascend(grey, gradient, 0.1)
        torch.testing.assert_close(distance(grey, moved, "l2"), torch.full((3,), 0.1), rtol=1e-4, atol=1e-5)
    still = Ball("l2", 1.0).ascend(torch.full((3, 3, 4, 4), 0.5), torch.zeros(3, 3, 4, 4), 0.1)
    assert torch.equal(still, torch.full((3, 3, 4, 4), 0.5))


def test_onnx_runtime_out_of_memory_is_recognised() -> None:
    """Its exceptions are no RuntimeErrors; the text is what its arena says."""

    class Fail(Exception):
        pass

    tried: list[int] = []

    def work(_start: int, batch: torch.Tensor) -> None:
        tried.append(len(batch))
        if len(batch) > 2:
            raise Fail("bfc_arena.cc: Failed to allocate memory for requested buffer of size 1")

    Batches(8, Output()).over(torch.arange(4), work)
    assert tried == [4, 2, 2]


def test_a_class_without_images_has_no_accuracy() -> None:
    model = Deployed(Steps(False), "none").eval()
    data = DeviceSplit(torch.full((4, 3, 2, 2), 128, dtype=torch.uint8), torch.zeros(4, dtype=torch.long))
    report = measure(model, data, PGD())
    assert [c.clean_accuracy for c in report.per_class] == [1.0, None]
