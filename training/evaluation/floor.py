"""The floor of a two-tower model: what its robust tower carries alone, whatever the other tower says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ducat_serve.deployed import Deployed, towers_of
from ducat_serve.report import FLOOR_CHECK, AttackResult, Floor, SanityCheck
from ducat_serve.spec import Switch
from training.attacks.apgd import APGD
from training.attacks.base import Attack, TargetModel
from training.attacks.criteria import unsure
from training.attacks.tower_losses import mapped_margin_of
from training.evaluation.attempt import Attempt
from training.evaluation.examples import Examples
from training.evaluation.runner import Runner
from training.evaluation.stages import attack_named
from training.evaluation.wilson import wilson

_ATTACKS = ("apgd-ce", "closest-first")
_SLACK = 0.01  # of the images: a few may fall either way


@dataclass(frozen=True)
class MappedMargin(APGD):
    """APGD on the very margin that the switch looks at, of the robust tower alone."""

    name: ClassVar[str] = "mapped-margin"


def floor(runner: Runner, examples: Examples) -> tuple[Floor, SanityCheck] | None:
    """The floor, and whether it lies where it must; None for a model without towers.

    Call it after all attacks on both towers. What they broke has shown that the robust tower does not carry it either,
    so the floor is at most the worst case. Attacks on the robust tower alone have the easier task: where they leave
    more than the attacks on both, one of them is too weak.
    """
    fold, towers = runner.model.fold, towers_of(runner.model)
    if not isinstance(fold, Switch) or towers is None:
        return None
    alone = replace(runner, model=Deployed(towers.robust, "none").eval())
    criterion = unsure(fold)
    carried = ~criterion(alone.clean_logits, runner.data.labels)
    results = []
    target = TargetModel("none", alone.clean_logits.shape[1])
    attacks: list[Attack] = [attack_named(name, target) for name in _ATTACKS]
    for attack in (*attacks, MappedMargin(mapped_margin_of(fold))):
        name = attack.name
        index = carried.nonzero().squeeze(1)
        attempt = Attempt.of(alone, f"floor {name}", attack, index, criterion)
        carried[index] = ~criterion(attempt.raw, runner.data.labels[index])
        left, total = int(carried.sum()), len(carried)
        runner.output.say(
            f"floor: {name:<14} on {len(index):>5} images, {left / total:.1%} of all still carried  "
            f"({attempt.seconds:.0f} s)"
        )
        results.append(attempt.result(left, total))
    return _result(carried, examples.right, tuple(results))


def _result(carried: Tensor, right: Tensor, attacks: tuple[AttackResult, ...]) -> tuple[Floor, SanityCheck]:
    total, alone = len(carried), int(carried.sum())
    proven = int((carried & right).sum())
    check = SanityCheck(
        name=FLOOR_CHECK,
        expectation="attacks on the robust tower alone leave no more images than attacks on both towers",
        passed=alone <= int(right.sum()) + max(1, _SLACK * total),
        figures={"robust tower alone": alone / total, "both towers": int(right.sum()) / total},
    )
    found = Floor(
        accuracy=proven / total,
        interval=wilson(proven, total),
        attacks=attacks,
        found_by_others=(alone - proven) / total,
    )
    return found, check
