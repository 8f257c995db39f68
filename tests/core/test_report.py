"""The report's own rules: what old reports leave out, and who knows the pairs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ducat_serve.report import AttackResult, RobustnessReport


def report(*attacks: dict[str, Any]) -> RobustnessReport:
    """A report as JSON has it, without the fields that later versions brought."""
    measured = {"settings": {}, "examples": 9, "accuracy": 0.5, "worst_case_accuracy": 0.5, "seconds": 1}
    return RobustnessReport.model_validate(
        {
            "weights_digest": "0" * 64,
            "dataset": "digits",
            "split": "test",
            "examples": 10,
            "norm": "linf",
            "eps": 0.1,
            "seed": 0,
            "clean_accuracy": 0.9,
            "worst_case_accuracy": 0.5,
            "worst_case_interval": [0.2, 0.8],
            "per_class": [],
            "attacks": [{**measured, **attack} for attack in attacks],
            "versions": {},
        }
    )


@pytest.mark.parametrize(
    ("attack", "knows"),
    [
        ({"name": "pgd"}, False),
        ({"name": "pair-margin-1"}, True),  # an old report: by its name
        ({"name": "pair-margin-1", "knows_pairs": False}, False),  # what was stored counts
        ({"name": "brand-new", "knows_pairs": True}, True),
    ],
)
def test_who_knows_the_pairs(attack: dict[str, Any], knows: bool) -> None:
    assert report({"name": "apgd-ce"}, attack).knows_pairs is knows


def test_an_old_report_loads_without_what_it_does_not_have() -> None:
    old = report({"name": "square"})
    assert old.clean_interval is None
    assert old.attacks == (
        AttackResult(
            name="square", settings={}, examples=9, accuracy=0.5, worst_case_accuracy=0.5, seconds=1
        ),
    )


def test_an_old_report_is_written_as_it_was_read() -> None:
    """Exported again, an old checkpoint must give the bytes that it gave before."""
    written = report({"name": "square"}).model_dump(mode="json")
    assert "clean_interval" not in written
    assert "knows_pairs" not in written["attacks"][0]
    new = report({"name": "square", "knows_pairs": False}).model_copy(update={"clean_interval": (0.7, 1.0)})
    assert new.model_dump(mode="json")["clean_interval"] == [0.7, 1.0]
    assert new.model_dump(mode="json")["attacks"][0]["knows_pairs"] is False


def test_no_more_images_are_right_under_attack_than_when_clean() -> None:
    stored = report({"name": "square"}).model_dump(mode="json")
    with pytest.raises(ValidationError, match="than on their clean images"):
        RobustnessReport.model_validate({**stored, "worst_case_accuracy": 0.95})
    RobustnessReport.model_validate({**stored, "worst_case_accuracy": 0.9})
