"""The attacks of an evaluation by name, and the suites made of them: cheap ones first.

Every stage attacks and is judged on the deployed function. What knows the dummies: `apgd-lse`, `pair-margin-*`,
`targeted` and `square-warm`; a model without dummies has one margin stage in place of three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ducat_serve.deployed import Deployed
from ducat_serve.errors import UsageError, unknown_name
from ducat_serve.spec import Fold
from training.attacks import losses
from training.attacks.apgd import apgd
from training.attacks.autoattack import autoattack
from training.attacks.base import Attack
from training.attacks.pgd import pgd
from training.attacks.square import square
from training.attacks.targeted_apgd import apgd_targeted
from training.attacks.transfer import transfer
from training.attacks.warm_square import diversified_square

Settings = dict[str, int | float | str]


@dataclass(frozen=True)
class Stage:
    """One attack with its settings, as the report shows them."""

    name: str
    settings: Settings
    attack: Attack


@dataclass(frozen=True)
class Target:
    """What the stages need to know of the model that they are made for."""

    fold: Fold
    num_classes: int
    surrogate: Deployed | None = None  # the model's own pre-dummy weights, or the checkpoint of an export


def suite(name: str, target: Target) -> list[Stage]:
    """The stages of a suite for a model. Raises UsageError for an unknown name."""
    if name not in SUITES:
        raise unknown_name("suite", name, SUITES)
    return [stage(attack, target) for attack in SUITES[name] if _applies(attack, target)]


def stage(name: str, target: Target) -> Stage:
    """One stage by name. Raises UsageError for an unknown name, or `transfer` without a surrogate."""
    if name not in ATTACKS:
        raise unknown_name("attack", name, ATTACKS)
    if name == "apgd-lse" and target.fold == "none":
        raise UsageError("apgd-lse attacks the fold, and this model has no dummies.", "choose apgd-ce")
    return ATTACKS[name](target)


def _pgd(_target: Target) -> Stage:
    return Stage("pgd", {"loss": "cross entropy of the deployed logits", "steps": 20}, partial(pgd, steps=20))


def _apgd(
    name: str, loss: Callable[[Fold], losses.Loss], what: str, steps: int = 100
) -> Callable[[Target], Stage]:
    def build(target: Target) -> Stage:
        return Stage(name, {"loss": what, "steps": steps}, partial(apgd, loss=loss(target.fold), steps=steps))

    return build


def _dlr(target: Target) -> Stage:
    if (
        target.num_classes < 4
    ):  # its denominator is the gap to the third logit, which means little among so few
        what = f"margin (DLR needs 4 classes, the model has {target.num_classes})"
        return _apgd("apgd-dlr", losses.margin, what)(target)
    return _apgd("apgd-dlr", losses.dlr, "DLR of the deployed logits")(target)


def _pair_margin(temperature: float) -> Callable[[Target], Stage]:
    return _apgd(
        f"pair-margin-{temperature:g}",
        lambda fold: losses.pair_margin(fold, temperature),
        f"pair-weighted margin, T = {temperature:g}",
    )


def _targeted(target: Target, steps: int = 50) -> Stage:
    where = "t" if target.fold == "none" else "t and t + C"
    if target.num_classes < 4:
        what = f"targeted margin at {where} (DLR needs 4 classes, the model has {target.num_classes})"
        loss = losses.targeted_margin(target.fold)
    else:
        what, loss = f"targeted DLR at {where}", losses.targeted_dlr(target.fold)
    return Stage("targeted", {"loss": what, "steps": steps}, partial(apgd_targeted, loss=loss, steps=steps))


def _transfer(target: Target, steps: int = 100) -> Stage:
    if target.surrogate is None:
        raise UsageError(
            "The transfer attack needs pre_dummy.safetensors beside the model, and there is none.",
            "choose other attacks, or evaluate the run folder of a model with dummies",
        )
    settings: Settings = {"loss": "cross entropy and margin of the surrogate", "steps": steps}
    return Stage("transfer", settings, partial(transfer, surrogate=target.surrogate, steps=steps))


def _square_warm(_target: Target) -> Stage:
    settings: Settings = {"restarts": 9, "steps": 25, "queries": 1000}
    return Stage("square-warm", settings, partial(diversified_square, restarts=9, steps=25, queries=1000))


def _square(_target: Target) -> Stage:
    return Stage("square", {"loss": "margin, scores only", "queries": 1000}, partial(square, queries=1000))


def _autoattack(target: Target) -> Stage:
    version = "standard" if target.num_classes >= 4 else "apgd-ce, fab, square (fewer than 4 classes)"
    return Stage("autoattack", {"version": version, "implementation": "pyautoattack"}, autoattack)


ATTACKS: dict[str, Callable[[Target], Stage]] = {
    "pgd": _pgd,
    "apgd-ce": _apgd("apgd-ce", losses.cross_entropy, "cross entropy of the deployed logits"),
    "apgd-dlr": _dlr,
    "apgd-lse": _apgd("apgd-lse", lambda _: losses.cross_entropy("lse"), "cross entropy of the lse-fold"),
    "pair-margin-0": _pair_margin(0),
    "pair-margin-1": _pair_margin(1),
    "pair-margin-4": _pair_margin(4),
    "targeted": _targeted,
    "square-warm": _square_warm,
    "transfer": _transfer,
    "autoattack": _autoattack,
    "square": _square,
}

_STANDARD = (
    "pgd",
    "apgd-ce",
    "apgd-dlr",
    "apgd-lse",
    "pair-margin-0",
    "pair-margin-1",
    "pair-margin-4",
    "targeted",
    "transfer",
    "square-warm",
)

SUITES: dict[str, tuple[str, ...]] = {
    "quick": ("pgd", "apgd-ce", "pair-margin-1"),
    "standard": _STANDARD,
    "full": (*_STANDARD, "autoattack", "square"),
}

# What needs no gradient of the model itself: all that an exported file can be attacked with
BLACK_BOX = ("transfer", "square")

_NEED_DUMMIES = {"apgd-lse", "pair-margin-0", "pair-margin-4"}


def _applies(name: str, target: Target) -> bool:
    """apgd-lse equals apgd-ce for an lse-fold, and without dummies all pair margins are one and the same."""
    if name == "transfer":
        return target.surrogate is not None
    if target.fold == "none":
        return name not in _NEED_DUMMIES
    return not (name == "apgd-lse" and target.fold == "lse")
