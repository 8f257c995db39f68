"""Attacks that users write themselves, as functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ducat_serve import Output, evaluate, evaluate_model
from ducat_serve.checklist import tick_off
from ducat_serve.errors import UsageError
from ducat_serve.threat_model import ThreatModel
from training.attacks.own import AttackFunction, OwnAttack

SILENT = Output(silent=True)
THREAT = ThreatModel(norm="linf", eps=0.04)
LABELS = torch.arange(60) % 2
# Class 1 is brighter than a half by about eps.
IMAGES = 0.41 + 0.08 * LABELS.view(-1, 1, 1, 1)
IMAGES = IMAGES + 0.1 * torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
IMAGES = (255 * IMAGES).round() / 255


class Bright(nn.Module):
    """Class 1 where an image is brighter than a half; with levels it sees nothing finer, and has gradient 0."""

    def __init__(self, levels: int | None = None) -> None:
        super().__init__()
        self.levels = levels
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, images: Tensor) -> Tensor:
        if self.levels is not None:
            images = (images * self.levels).round() / self.levels
        brightness = self.scale * (images.flatten(1).mean(dim=1) - 0.5)
        return torch.stack([-brightness, brightness], dim=1)


def towards_the_other(model: nn.Module, images: Tensor, labels: Tensor, threat_model: ThreatModel) -> Tensor:
    """The best that can be done to `Bright`, in one step along its gradient."""
    assert not any(parameter.requires_grad for parameter in model.parameters()), "weights get no gradient"
    images.requires_grad_(True)
    own = model(images).gather(1, labels.unsqueeze(1)).sum()
    step = torch.autograd.grad(own, images)[0].sign()
    return (images.detach() - threat_model.eps * step).clamp(0, 1)


def without_gradient(model: nn.Module, images: Tensor, labels: Tensor, threat_model: ThreatModel) -> Tensor:
    """Knows of the rounding, and goes through it as if it were not there (Athalye et al. 2018)."""
    assert model(images).shape == (len(images), 2)
    return (images + threat_model.eps * (1 - 2 * labels.view(-1, 1, 1, 1))).clamp(0, 1)


def expected(model: nn.Module, eps: float) -> float:
    """What every pixel moved by eps towards the other class leaves."""
    moved = (IMAGES + eps * (1 - 2 * LABELS.view(-1, 1, 1, 1))).clamp(0, 1)
    with torch.no_grad():
        return float((model(moved).argmax(dim=1) == LABELS).double().mean())


def test_a_function_is_an_attack_like_any_other() -> None:
    model = Bright().eval()
    report = evaluate_model(model, IMAGES, LABELS, THREAT, attacks=towards_the_other, output=SILENT)
    assert [(attack.name, attack.settings) for attack in report.attacks] == [("own:towards_the_other", {})]
    assert report.attacks[0].gradient_steps == 60, "one for each image"
    assert report.worst_case_accuracy == pytest.approx(expected(model, THREAT.eps))
    assert 0 < report.worst_case_accuracy < report.clean_accuracy
    assert all(parameter.requires_grad for parameter in model.parameters()), "as it was"


def test_it_stands_beside_attacks_of_ours_and_knows_what_they_do_not() -> None:
    model = Bright(levels=20).eval()
    report = evaluate(
        model, IMAGES, LABELS, THREAT, attacks=["pgd", without_gradient], lattice="8bit", output=SILENT
    )
    assert [attack.name for attack in report.attacks] == ["pgd", "own:without_gradient"]
    assert report.attacks[0].worst_case_accuracy == report.clean_accuracy, "a gradient of 0 leads nowhere"
    eight_bit = int(255 * THREAT.eps) / 255
    assert report.worst_case_accuracy == pytest.approx(expected(model, eight_bit))
    assert report.worst_case_accuracy < report.clean_accuracy


def test_it_may_bring_the_gradient_that_a_model_lacks() -> None:
    class Cut(Bright):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = super().forward(images.detach())
            return logits.detach()

    model = Cut().eval()
    report = evaluate_model(model, IMAGES, LABELS, THREAT, attacks=["pgd", without_gradient], output=SILENT)
    assert report.gradients == "none"
    assert [attack.name for attack in report.attacks] == ["own:without_gradient"]
    assert report.worst_case_accuracy == pytest.approx(expected(model, THREAT.eps))


def test_nobody_takes_it_for_an_attack_of_ours() -> None:
    def autoattack(_model: nn.Module, images: Tensor, _labels: Tensor, _threat_model: ThreatModel) -> Tensor:
        return images

    report = evaluate_model(Bright().eval(), IMAGES, LABELS, THREAT, attacks=autoattack, output=SILENT)
    assert report.attacks[0].name == "own:autoattack"
    assert OwnAttack(partial(autoattack)).name == "own:autoattack"
    assert {item.name: holds for item, holds in tick_off(report)}["reference"] is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images + 0.06, r"at a distance of 0\.06 in linf; eps is 0\.04"),
        (lambda images: images - 2, r"outside of \[0, 1\]"),
        (lambda images: images * torch.nan, "or NaN"),
        (lambda images: images[:1], r"a tensor of \[1, 1, 4, 4\], not images \[60, 1, 4, 4\]"),
        (lambda images: list(images), "returned list"),
    ],
)
def test_what_it_returns_has_to_be_images_in_the_ball(change: Callable[[Tensor], Any], message: str) -> None:
    def wrong(_model: nn.Module, images: Tensor, _labels: Tensor, _threat_model: ThreatModel) -> Tensor:
        found: Tensor = change(images)
        return found

    with pytest.raises(UsageError, match=message):
        evaluate_model(Bright().eval(), IMAGES, LABELS, THREAT, attacks=wrong, output=SILENT)


def test_it_may_not_change_the_model() -> None:
    """Every image of a model that was turned round counts as broken."""

    def turn_round(model: nn.Module, images: Tensor, _labels: Tensor, _threat_model: ThreatModel) -> Tensor:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(-1)
        return images

    with pytest.raises(UsageError, match="own:turn_round changed the model"):
        evaluate_model(Bright().eval(), IMAGES, LABELS, THREAT, attacks=turn_round, output=SILENT)


@pytest.mark.parametrize("eps", [0.5 / 255, 1e-4])
def test_what_rounding_makes_of_the_border_is_no_error(eps: float) -> None:
    def clipped(_model: nn.Module, images: Tensor, _labels: Tensor, threat_model: ThreatModel) -> Tensor:
        far = images + 1
        return torch.maximum(torch.minimum(far, images + threat_model.eps), images - threat_model.eps)

    report = evaluate_model(
        Bright().eval(), IMAGES, LABELS, ThreatModel(norm="linf", eps=eps), attacks=clipped, output=SILENT
    )
    assert report.attacks[0].examples == len(IMAGES)


@dataclass
class Object:
    """Has no hash, as what can be compared has none."""

    share: float = 1.0

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, threat_model: ThreatModel) -> Tensor:
        smaller = threat_model.model_copy(update={"eps": self.share * threat_model.eps})
        return towards_the_other(model, images, labels, smaller)


def test_an_object_that_can_be_called_is_one_too() -> None:
    model, attack = Bright().eval(), Object()
    report = evaluate_model(
        model, IMAGES, LABELS, THREAT, attacks=[Object(0.5), attack, attack], output=SILENT
    )
    assert [one.name for one in report.attacks] == ["own:Object", "own:Object"]
    assert report.worst_case_accuracy == pytest.approx(expected(model, THREAT.eps))


def test_a_function_is_not_gone_on_with() -> None:
    """Its name says nothing of what it does, and a figure of code that is no more would be published."""
    with pytest.raises(UsageError, match="resume: whether a function is the one"):
        evaluate("digits-small", attacks=towards_the_other, resume=True, output=SILENT)


@pytest.mark.parametrize("attacks", [3, [3], ["pgd", None]])
def test_neither_a_name_nor_a_function(attacks: Any) -> None:
    with pytest.raises(UsageError, match="neither the name of an attack nor a function"):
        evaluate_model(Bright().eval(), IMAGES, LABELS, THREAT, attacks=attacks, output=SILENT)


def test_a_file_of_ours_is_attacked_by_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    attacks: list[str | AttackFunction] = ["pgd", towards_the_other, "pgd"]
    report = evaluate("digits-small", attacks=attacks, max_examples=20, device="cpu", output=SILENT)
    assert [attack.name for attack in report.attacks] == ["pgd", "own:towards_the_other"]
    assert report.attacks[1].examples == round(20 * report.attacks[0].worst_case_accuracy)
