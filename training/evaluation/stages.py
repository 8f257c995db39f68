"""The attacks of an evaluation by name, and the suites made of them: cheap ones first.

Every stage attacks and is judged on the deployed function. What knows the dummies: `apgd-lse`, `pair-margin-*`
and `targeted`; a model without dummies has one margin stage in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from ducat_serve.errors import unknown_name
from ducat_serve.spec import Fold
from training.attacks import losses
from training.attacks.apgd import apgd
from training.attacks.ball import Ball
from training.attacks.pgd import pgd
from training.attacks.square import square
from training.attacks.targeted import apgd_targeted

Settings = dict[str, int | float | str]


class Attack(Protocol):
    """Looks for images in the ball that the deployed function gets wrong."""

    def __call__(
        self, model: Deployed, images: Tensor, labels: Tensor, ball: Ball, generator: torch.Generator
    ) -> Tensor: ...


@dataclass(frozen=True)
class Stage:
    """One attack with its settings, as the report shows them."""

    name: str
    settings: Settings
    attack: Attack


def suite(name: str, fold: Fold, num_classes: int) -> list[Stage]:
    """The stages of a suite for a model. Raises UsageError for an unknown name."""
    if name not in SUITES:
        raise unknown_name("suite", name, SUITES)
    return [stage(attack, fold, num_classes) for attack in SUITES[name] if _applies(attack, fold)]


def stage(name: str, fold: Fold, num_classes: int) -> Stage:
    """One stage by name. Raises UsageError for an unknown name."""
    if name not in ATTACKS:
        raise unknown_name("attack", name, ATTACKS)
    return ATTACKS[name](fold, num_classes)


def _pgd(_fold: Fold, _classes: int, steps: int = 20) -> Stage:
    def attack(
        model: Deployed, images: Tensor, labels: Tensor, ball: Ball, generator: torch.Generator
    ) -> Tensor:
        return pgd(model, images, labels, ball, steps=steps, step_size=ball.eps / 4, generator=generator)

    return Stage("pgd", {"loss": "cross entropy of the deployed logits", "steps": steps}, attack)


def _apgd(name: str, loss: Callable[[Fold], losses.Loss], what: str) -> Callable[[Fold, int], Stage]:
    def build(fold: Fold, _classes: int, steps: int = 100) -> Stage:
        def attack(
            model: Deployed, images: Tensor, labels: Tensor, ball: Ball, generator: torch.Generator
        ) -> Tensor:
            return apgd(model, images, labels, ball, loss(fold), steps=steps, generator=generator)

        return Stage(name, {"loss": what, "steps": steps}, attack)

    return build


def _dlr(fold: Fold, num_classes: int) -> Stage:
    if num_classes < 4:  # its denominator is the gap to the third logit, which means little among so few
        what = f"margin (DLR needs 4 classes, the model has {num_classes})"
        return _apgd("apgd-dlr", losses.margin, what)(fold, num_classes)
    return _apgd("apgd-dlr", losses.dlr, "DLR of the deployed logits")(fold, num_classes)


def _pair_margin(temperature: float) -> Callable[[Fold, int], Stage]:
    return _apgd(
        f"pair-margin-{temperature:g}",
        lambda fold: losses.pair_margin(fold, temperature),
        f"pair-weighted margin, T = {temperature:g}",
    )


def _targeted(fold: Fold, num_classes: int, steps: int = 100) -> Stage:
    if num_classes < 4:
        return _apgd("targeted", losses.margin, f"margin (targeted DLR needs 4 classes, not {num_classes})")(
            fold, num_classes
        )

    def attack(
        model: Deployed, images: Tensor, labels: Tensor, ball: Ball, generator: torch.Generator
    ) -> Tensor:
        return apgd_targeted(model, images, labels, ball, steps=steps, generator=generator)

    where = "t" if fold == "none" else "t and t + C"
    return Stage("targeted", {"loss": f"targeted DLR at {where}", "steps": steps}, attack)


def _square(_fold: Fold, _classes: int, queries: int = 1000) -> Stage:
    def attack(
        model: Deployed, images: Tensor, labels: Tensor, ball: Ball, generator: torch.Generator
    ) -> Tensor:
        return square(model, images, labels, ball, queries=queries, generator=generator)

    return Stage("square", {"loss": "margin, scores only", "queries": queries}, attack)


ATTACKS: dict[str, Callable[[Fold, int], Stage]] = {
    "pgd": _pgd,
    "apgd-ce": _apgd("apgd-ce", losses.cross_entropy, "cross entropy of the deployed logits"),
    "apgd-dlr": _dlr,
    "apgd-lse": _apgd("apgd-lse", lambda _: losses.cross_entropy("lse"), "cross entropy of the lse-fold"),
    "pair-margin-0": _pair_margin(0),
    "pair-margin-1": _pair_margin(1),
    "pair-margin-4": _pair_margin(4),
    "targeted": _targeted,
    "square": _square,
}

SUITES: dict[str, tuple[str, ...]] = {
    "quick": ("pgd", "apgd-ce", "pair-margin-1"),
    "standard": (
        "pgd",
        "apgd-ce",
        "apgd-dlr",
        "apgd-lse",
        "pair-margin-0",
        "pair-margin-1",
        "pair-margin-4",
        "targeted",
        "square",
    ),
}

_NEED_DUMMIES = {"apgd-lse", "pair-margin-0", "pair-margin-4"}


def _applies(name: str, fold: Fold) -> bool:
    """apgd-lse equals apgd-ce for an lse-fold, and without dummies all pair margins are one and the same."""
    if fold == "none":
        return name not in _NEED_DUMMIES
    return not (name == "apgd-lse" and fold == "lse")
