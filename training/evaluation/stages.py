"""The attacks of an evaluation, and the suites made of them: cheap ones first.

Every attack is judged on the deployed function. A new attack is one file in `training/attacks/` and one line here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ducat_serve.errors import UsageError, unknown_name
from training.attacks.apgd_ce import APGDCrossEntropy, APGDLse
from training.attacks.apgd_dlr import APGDDLR
from training.attacks.autoattack import AutoAttack
from training.attacks.base import Attack, TargetModel
from training.attacks.closest_first import ClosestFirst
from training.attacks.own import AttackFunction, OwnAttack
from training.attacks.pair_margin import PairMargin
from training.attacks.pgd import PGD
from training.attacks.square import Square
from training.attacks.switch import SwitchAttack
from training.attacks.targeted_apgd import TargetedAPGD
from training.attacks.transfer import Transfer
from training.attacks.warm_square import WarmSquare

_QUICK = ("pgd", "apgd-ce", "pair-margin-1")
# `closest-first` before `apgd-ce`: its first 50 steps on the margin break most of what 100 steps on cross entropy do.
_STANDARD: tuple[Attack, ...] = (PGD(), ClosestFirst(), APGDCrossEntropy(), SwitchAttack(), Transfer())
# Every one of them goes through all survivors: for models whose gradients mislead, where margins tell little of what
# may still fall. `standard` goes on to them where a sanity check fails, or could not be made.
_EXHAUSTIVE: tuple[Attack, ...] = (
    APGDDLR(),
    APGDLse(),
    PairMargin(temperature=0),
    PairMargin(temperature=1),
    PairMargin(temperature=4),
    TargetedAPGD(),
    WarmSquare(),
    Square(),
)
_AUTOATTACK_QUERIES = 5000
_FULL: tuple[Attack, ...] = (*_STANDARD, *_EXHAUSTIVE, AutoAttack())

ATTACKS: dict[str, Attack] = {attack.name: attack for attack in _FULL}
SUITES: dict[str, tuple[str, ...]] = {
    "quick": _QUICK,
    "standard": tuple(attack.name for attack in _STANDARD),
    "full": tuple(ATTACKS),
}


def require_suite(name: object) -> None:
    """Raise UsageError for what is no name of a suite."""
    if name not in list(SUITES):
        raise unknown_name("suite", str(name), SUITES)


def require_attacks(names: Sequence[str | AttackFunction]) -> None:
    """Raise UsageError for what is no name of an attack."""
    for name in names:
        if isinstance(name, str) and name not in ATTACKS:
            raise unknown_name("attack", name, ATTACKS)


def suite(name: str, target: TargetModel) -> list[Attack]:
    """The attacks of a suite that apply to a model. Raises UsageError for an unknown name."""
    require_suite(name)
    chosen = (ATTACKS[attack] for attack in SUITES[name])
    return [attack.fitted(target) for attack in chosen if attack.applies(target)]


def score_attacks(
    suite: str, names: Sequence[str | AttackFunction], target: TargetModel, instead: str
) -> list[Attack]:
    """The attacks of a suite, or those named, for a model that only tells its scores: every suite has the same ones.

    All but `quick` give squares as many queries as AutoAttack does, since nothing else looks there for what is left.

    Args:
        instead: what to measure in its place where one that is named needs gradients, for the error.

    Raises UsageError for an unknown suite or name, or an attack that needs gradients of the model.
    """
    require_suite(suite)
    possible = [attack.name for attack in ATTACKS.values() if not attack.needs_gradient]
    chosen = [attack_named(name, target) for name in names]
    if impossible := [attack.name for attack in chosen if attack.needs_gradient]:
        raise UsageError(
            f"{', '.join(impossible)} needs gradients, and there are only scores here.",
            f"{instead}, or choose from: {', '.join(possible)}",
        )
    if chosen:
        return chosen
    fitting = [ATTACKS[name] for name in possible if ATTACKS[name].applies(target)]
    return [
        attack.fitted(target) for attack in (fitting if suite == "quick" else _with_more_queries(fitting))
    ]


def on_doubt(name: str, target: TargetModel) -> list[Attack]:
    """What a suite goes on to where a sanity check fails or could not be made.

    For `standard`, all slow attacks that apply to a model; for others nothing. Squares get as many queries as
    AutoAttack's: where gradients mislead, they find what nothing else does.
    """
    if name != "standard":
        return []
    return [attack.fitted(target) for attack in _with_more_queries(_EXHAUSTIVE) if attack.applies(target)]


def _with_more_queries(attacks: Iterable[Attack]) -> list[Attack]:
    return [
        replace(attack, queries=_AUTOATTACK_QUERIES) if isinstance(attack, Square) else attack
        for attack in attacks
    ]


def attack_named(name: str | AttackFunction, target: TargetModel) -> Attack:
    """One attack by name, or a function of the user's own.

    Raises UsageError for an unknown name, or one that cannot run on the model.
    """
    if not isinstance(name, str):
        return OwnAttack(name)
    require_attacks((name,))
    return ATTACKS[name].fitted(target)
