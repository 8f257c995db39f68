"""What an honest evaluation has, ticked off from the report itself. docs/evaluation.md explains every item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ducat_serve.report import HELD_OUT, AttackResult, RobustnessReport

ENOUGH_IMAGES = 1000  # a 95 % interval of at most about 3 points to both sides
ENOUGH_STEPS = 100
SEVERAL_LOSSES = 3
# Names of attacks in reports; a test asks the attacks themselves. The losses whose gradients an attack follows: of one
# that is not listed, such as somebody's own, one that no other has.
LOSSES = {
    "pgd": {"cross entropy"},
    "apgd-ce": {"cross entropy"},
    "apgd-dlr": {"dlr"},
    "apgd-lse": {"cross entropy of the lse-fold"},
    "pair-margin-0": {"pair margin"},
    "pair-margin-1": {"pair margin"},
    "pair-margin-4": {"pair margin"},
    "targeted": {"targeted dlr"},
    "closest-first": {"margin", "dlr", "targeted dlr"},
    "square-warm": {"margin"},
    "autoattack": {"cross entropy", "targeted dlr", "boundary distance"},
}
TARGETED = {"targeted", "closest-first", "autoattack"}
# Classes; with fewer, attacks follow the margin in its place, and AutoAttack is not targeted.
_FEWEST_FOR_DLR = 4
_MARGIN = "margin"
BY_SCORES = {"square", "square-warm", "closest-first", "autoattack"}
REFERENCE = "autoattack"
TRANSFER = "transfer"


@dataclass(frozen=True)
class Item:
    """One item: ``holds`` answers from a report alone, without its figures."""

    name: str
    text: str
    holds: Callable[[RobustnessReport], bool]


def _follows_gradients(attack: AttackResult) -> bool:
    return attack.gradient_steps > 0


def _setting(report: RobustnessReport, name: str) -> int:
    """The largest value of a hyperparameter among the attacks that follow gradients; 0 where none has it."""
    values = [attack.settings.get(name, 0) for attack in report.attacks if _follows_gradients(attack)]
    return max((value for value in values if isinstance(value, int)), default=0)


def _losses(report: RobustnessReport) -> int:
    """How many losses the attacks follow the gradients of."""
    names = (attack.name for attack in report.attacks if _follows_gradients(attack))
    return len(set[str]().union(*(_followed(name, report) for name in names)))


def _followed(name: str, report: RobustnessReport) -> set[str]:
    """The losses whose gradients the attack of this name follows."""
    losses = LOSSES.get(name, {name})
    if _has_dlr(report):
        return losses
    return losses - {"targeted dlr"} if name == REFERENCE else {_MARGIN if "dlr" in x else x for x in losses}


def _has_dlr(report: RobustnessReport) -> bool:
    return not 0 < len(report.per_class) < _FEWEST_FOR_DLR


def _targeted(report: RobustnessReport) -> bool:
    return bool(_names(report) & (TARGETED if _has_dlr(report) else TARGETED - {REFERENCE}))


def _names(report: RobustnessReport) -> set[str]:
    return {attack.name for attack in report.attacks}


CHECKLIST: tuple[Item, ...] = (
    Item("deployed", "attacks saw the function that is deployed", lambda r: bool(r.attacks)),
    Item(
        "gradients",
        "an attack follows the model's own gradients",
        lambda r: any(map(_follows_gradients, r.attacks)),
    ),
    Item(
        "steps",
        f"one of them takes at least {ENOUGH_STEPS} steps",
        lambda r: REFERENCE in _names(r) or _setting(r, "steps") >= ENOUGH_STEPS,
    ),
    Item(
        "losses",
        f"attacks follow the gradients of at least {SEVERAL_LOSSES} losses",
        lambda r: _losses(r) >= SEVERAL_LOSSES,
    ),
    Item("targets", "an attack tries the other classes one by one", _targeted),
    Item(
        "restarts",
        "an attack starts anew from several places",
        lambda r: REFERENCE in _names(r) or _setting(r, "restarts") > 1,
    ),
    Item(
        "black-box",
        "an attack, or its last stage, uses scores and no gradients",
        lambda r: bool(_names(r) & BY_SCORES),
    ),
    Item("transfer", "images made on another model were shown to this one", lambda r: TRANSFER in _names(r)),
    Item(
        "adaptive",
        "an attack knows how the model decides (its fold, and pairs of classes)",
        lambda r: r.knows_pairs and not (r.is_of_others and r.fold is None),
    ),
    Item("reference", "AutoAttack was run by its authors' code", lambda r: REFERENCE in _names(r)),
    Item(
        "sanity",
        "all sanity checks were run and passed",
        lambda r: not (r.scores_only or r.is_unchecked or r.failed_checks),
    ),
    Item(
        "test images",
        "images that had no say in training",
        lambda r: r.split == "test" and not any(doubt.startswith(HELD_OUT) for doubt in r.doubts or ()),
    ),
    Item("enough images", f"at least {ENOUGH_IMAGES:,} of them", lambda r: r.examples >= ENOUGH_IMAGES),
    Item("corruptions", "accuracy under corruptions stands beside", lambda r: r.corruptions is not None),
)


def tick_off(report: RobustnessReport) -> list[tuple[Item, bool]]:
    """Every item with whether it holds."""
    return [(item, item.holds(report)) for item in CHECKLIST]
