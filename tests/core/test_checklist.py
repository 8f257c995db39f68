"""The checklist: ticked off from a report alone, and the same on the page that explains it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ducat_serve.checklist import BY_SCORES, CHECKLIST, LOSSES, REFERENCE, TARGETED, TRANSFER, tick_off
from ducat_serve.report import AttackResult, ClassResult, RobustnessReport, SanityCheck
from training.attacks.base import TargetModel
from training.evaluation.stages import ATTACKS, suite

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"
PASSED = SanityCheck(name="steps", expectation="more steps help", passed=True, figures={})


def report(*attacks: AttackResult, **changes: Any) -> RobustnessReport:
    fields: dict[str, Any] = {
        "weights_digest": "0" * 64,
        "dataset": "digits",
        "split": "test",
        "examples": 1000,
        "norm": "linf",
        "eps": 0.1,
        "seed": 0,
        "clean_accuracy": 0.9,
        "worst_case_accuracy": 0.5,
        "worst_case_interval": (0.4, 0.6),
        "per_class": (),
        "attacks": attacks,
        "sanity": (PASSED,),
        "versions": {},
        **changes,
    }
    return RobustnessReport(**fields)


def ran(name: str, *, fold: str = "max") -> AttackResult:
    """What an attack leaves in a report."""
    attack = next(a for a in suite("full", TargetModel(fold, 10)) if a.name == name)  # type: ignore[arg-type]
    return AttackResult(
        name=name,
        settings=attack.settings(),
        knows_pairs=attack.knows_pairs,
        examples=10,
        accuracy=0.5,
        worst_case_accuracy=0.5,
        gradient_steps=100 * attack.needs_gradient,
        forward_passes=100,
        seconds=1,
    )


def held(measured: RobustnessReport) -> set[str]:
    return {item.name for item, holds in tick_off(measured) if holds}


def test_suites_hold_what_they_should() -> None:
    few = held(report(*(ran(a.name) for a in suite("quick", TargetModel("max", 10)))))
    assert few == {  # two of its three attacks are on the cross entropy
        "deployed",
        "gradients",
        "steps",
        "adaptive",
        "sanity",
        "test images",
        "enough images",
    }
    more = held(report(*(ran(a.name) for a in suite("standard", TargetModel("max", 10)))))
    assert more == few | {"losses", "targets", "restarts", "black-box"}
    assert held(report(*(ran(a.name) for a in suite("full", TargetModel("max", 10))))) == more | {"reference"}


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"sanity": ()}, "sanity"),
        ({"sanity": (PASSED.model_copy(update={"passed": False}),)}, "sanity"),
        ({"split": "val"}, "test images"),
        ({"examples": 999}, "enough images"),
    ],
)
def test_every_other_item_can_fail(changes: dict[str, Any], lost: str) -> None:
    whole = report(ran("pgd"))
    assert held(whole) - held(report(ran("pgd"), **changes)) == {lost}


def test_attacks_of_one_loss_are_one_loss() -> None:
    assert "losses" not in held(report(*(ran(f"pair-margin-{t}") for t in (0, 1, 4))))
    assert "losses" not in held(report(ran("pgd"), ran("apgd-ce"), ran("targeted")))
    assert "losses" in held(report(ran("pgd"), ran("apgd-dlr"), ran("targeted")))


def test_steps_on_another_model_are_none() -> None:
    """Transfer takes 100 on its surrogate, and no gradient of the model itself."""
    of_it = ran("pgd").model_copy(update={"name": TRANSFER, "settings": {"steps": 100}, "gradient_steps": 0})
    assert "steps" not in held(report(ran("pgd"), of_it))
    assert "steps" in held(report(ran("autoattack")))


def test_scores_alone_are_no_gradients() -> None:
    found = held(report(ran("square"), artefact="onnx", sanity=()))
    assert found == {"deployed", "black-box", "test images", "enough images"}


def test_names_of_attacks_are_those_of_the_attacks() -> None:
    assert TARGETED | BY_SCORES | {REFERENCE, TRANSFER} <= set(ATTACKS)
    followed = {name for name, attack in ATTACKS.items() if attack.needs_gradient}
    # Of the one loss that no other has, and of another model.
    assert set(LOSSES) == followed - {"switch", TRANSFER}


def test_the_page_lists_the_same_items() -> None:
    section = PAGE.read_text().split("## The checklist")[1].split("\n## ")[0]
    rows = re.findall(r"^\| \*\*([^*]+)\*\* \| ([^|]+) \|", section, flags=re.MULTILINE)
    assert rows == [(item.name, item.text) for item in CHECKLIST]


def test_nothing_is_ticked_off_that_fewer_than_four_classes_do_not_allow() -> None:
    """DLR is then the margin, and AutoAttack is APGD-CE, an untargeted FAB and Square."""
    few = tuple(
        ClassResult(label=label, examples=5, clean_accuracy=1, worst_case_accuracy=0.5) for label in "ab"
    )
    reference = report(ran("autoattack"), per_class=few)
    assert not {"targets", "losses"} & held(reference)
    assert "losses" not in held(report(ran("pgd"), ran("closest-first"), per_class=few)), "two: CE and margin"
    assert "targets" in held(report(ran("closest-first"), per_class=few))
