"""The attacks of an evaluation, and the suites made of them: cheap ones first.

Every attack is judged on the deployed function. A new attack is one file in `training/attacks/` and one line here.
"""

from __future__ import annotations

from ducat_serve.errors import unknown_name
from training.attacks.apgd_ce import APGDCrossEntropy, APGDLse
from training.attacks.apgd_dlr import APGDDLR
from training.attacks.autoattack import AutoAttack
from training.attacks.base import Attack, TargetModel
from training.attacks.pair_margin import PairMargin
from training.attacks.pgd import PGD
from training.attacks.square import Square
from training.attacks.targeted_apgd import TargetedAPGD
from training.attacks.transfer import Transfer
from training.attacks.warm_square import WarmSquare

_QUICK = ("pgd", "apgd-ce", "pair-margin-1")
_STANDARD: tuple[Attack, ...] = (
    PGD(),
    APGDCrossEntropy(),
    APGDDLR(),
    APGDLse(),
    PairMargin(temperature=0),
    PairMargin(temperature=1),
    PairMargin(temperature=4),
    TargetedAPGD(),
    Transfer(),
    WarmSquare(),
)
_FULL: tuple[Attack, ...] = (*_STANDARD, AutoAttack(), Square())

ATTACKS: dict[str, Attack] = {attack.name: attack for attack in _FULL}
SUITES: dict[str, tuple[str, ...]] = {
    "quick": _QUICK,
    "standard": tuple(attack.name for attack in _STANDARD),
    "full": tuple(ATTACKS),
}


def suite(name: str, target: TargetModel) -> list[Attack]:
    """The attacks of a suite that apply to a model. Raises UsageError for an unknown name."""
    if name not in SUITES:
        raise unknown_name("suite", name, SUITES)
    chosen = (ATTACKS[attack] for attack in SUITES[name])
    return [attack.fitted(target) for attack in chosen if attack.applies(target)]


def attack_named(name: str, target: TargetModel) -> Attack:
    """One attack by name. Raises UsageError for an unknown name, or one that cannot run on the model."""
    if name not in ATTACKS:
        raise unknown_name("attack", name, ATTACKS)
    return ATTACKS[name].fitted(target)
