"""What sanity checks and studies break in the ball of the attacks counts as broken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ducat_serve.deployed import Deployed
from ducat_serve.output import Output
from ducat_serve.report_text import broken_by_checks_in_words
from ducat_serve.spec import Fold
from ducat_serve.threat_model import ThreatModel
from tests.training.evaluation.test_outputs import rows_of
from training.attacks.base import Attack
from training.attacks.pgd import PGD
from training.batches import DeviceSplit
from training.evaluation.evaluate import Measured, Plan, Subject, measure
from training.evaluation.per_image import write_per_image

EPS = 0.1
COUNT = 40


class Brightness(nn.Module):
    """Class 0 where an image is bright, in ``width`` logits; ``masked`` by a staircase without any gradient."""

    def __init__(self, *, masked: bool, width: int = 2) -> None:
        super().__init__()
        self.masked, self.width = masked, width

    def forward(self, images: Tensor) -> Tensor:
        level = images.mean(dim=(1, 2, 3))
        if self.masked:
            level = (level * 1000).round() / 1000 + 0 * level
        pair = torch.stack([level - 0.45, 0.45 - level], dim=1)
        return torch.cat([pair, pair - 0.01], dim=1)[:, : self.width]


def measured(
    *attacks: Attack, masked: bool = False, fold: Fold = "none", eps: float = EPS, **plan: Any
) -> tuple[Measured, Deployed, DeviceSplit]:
    """Grey images, all of them right, and wrong where they are darker by 0.055."""
    grey = torch.full((COUNT, 3, 4, 4), 128, dtype=torch.uint8)
    data = DeviceSplit(grey, torch.zeros(COUNT, dtype=torch.long))
    model = Deployed(Brightness(masked=masked, width=2 if fold == "none" else 4), fold).eval()
    subject = Subject(model, data, ("bright", "dark"), "digest", "test", "test")
    threat = ThreatModel(norm="linf", eps=eps)
    return measure(subject, Plan(threat, attacks, batch_size=16, **plan), Output()), model, data


def test_squares_of_a_sanity_check_count_where_gradients_mislead(tmp_path: Any) -> None:
    found, model, data = measured(PGD(), masked=True, keep_images=True)
    report = found.report
    assert report.attacks[-1].worst_case_accuracy == 1  # the attack that was asked for found nothing
    squares = next(check for check in report.sanity if check.name == "scores are weaker than gradients")
    assert report.worst_case_accuracy == squares.figures["then squares"] < 1
    broken = COUNT - round(report.worst_case_accuracy * COUNT)
    assert report.broken_by_checks == broken
    assert broken_by_checks_in_words(report)[0].startswith(f"{broken} images")

    write_per_image(tmp_path / "rows.csv", found, range(COUNT))
    assert [row["broken_by"] for row in rows_of(tmp_path / "rows.csv")].count("check") == broken
    assert found.examples.images is not None
    assert int((model(found.examples.images).argmax(dim=1) != 0).sum()) == broken
    distance = (found.examples.images - data.images / 255).abs().amax()
    assert distance <= EPS + 1e-6


def test_what_a_larger_ball_breaks_does_not_count() -> None:
    report = measured(PGD(), eps=0.01)[0].report
    large = next(check for check in report.sanity if check.name == "a large eps leaves nothing")
    assert large.figures["apgd"] == 0
    assert (report.worst_case_accuracy, report.broken_by_checks) == (1, None)
    assert broken_by_checks_in_words(report) == []
    assert "broken_by_checks" not in report.model_dump(mode="json")


@pytest.mark.parametrize(
    ("fold", "plan"),
    [
        (
            "none",
            {"val": DeviceSplit(torch.full((30, 3, 4, 4), 128, dtype=torch.uint8), torch.zeros(30).long())},
        ),
        ("max", {"legacy_attacks": ("apgd-ce",)}),
    ],
    ids=["rejection", "legacy"],
)
def test_what_a_study_breaks_counts(fold: Fold, plan: dict[str, Any]) -> None:
    report = measured(sanity=False, fold=fold, **plan)[0].report
    assert (report.worst_case_accuracy, report.broken_by_checks) == (0, COUNT)
