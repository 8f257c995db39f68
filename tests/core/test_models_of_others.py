"""What a report of somebody else's model says of its doubts, and where it goes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ducat_serve import Output, evaluate_model
from ducat_serve.checklist import tick_off
from ducat_serve.errors import UsageError
from ducat_serve.library.corruptions import MeasuredCorruptions
from ducat_serve.library.file_evaluation import keeping_corruptions
from ducat_serve.library.foreign import (
    _answers,
    _require_one_model,
    write_report,
)
from ducat_serve.library.report_places import beside_a_better_one
from ducat_serve.report import FLOOR_CHECK, RobustnessReport, SanityCheck
from ducat_serve.report_file import read_report
from ducat_serve.report_text import doubts
from ducat_serve.threat_model import ThreatModel
from export.model_card import report_card
from tests.support.reports import CORRUPTIONS
from training.data.cache import Split

THREAT = ThreatModel(norm="linf", eps=0.02)
SILENT = Output(silent=True)


class Brightness(nn.Module):
    """Two classes by the brightness of an image; ``how`` is what makes its answers doubtful."""

    def __init__(self, how: str = "", scale: float = 1.0) -> None:
        super().__init__()
        self.how, self.scale = how, scale
        if how != "weights elsewhere":
            self.register_buffer("middle", torch.tensor(0.5))

    def forward(self, images: Tensor) -> Tensor:
        if self.how == "in place":
            images.sub_(0.5).add_(0.5)
        bright = 10 * (images.mean(dim=(1, 2, 3)) - 0.5)
        if self.how == "random":
            bright = bright + 0.01 * torch.randn(len(images))
        if self.how == "no gradient":
            bright = bright.detach()
        logits = self.scale * torch.stack([-bright, bright], dim=1)
        return logits.softmax(dim=1) if self.how == "probabilities" else logits


def measured(model: nn.Module, suite: str = "standard", images: int = 40) -> RobustnessReport:
    levels = torch.linspace(0.2, 0.8, images).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    labels = (levels[:, 0, 0, 0] > 0.5).long()
    return evaluate_model(model.eval(), levels, labels, THREAT, suite=suite, output=SILENT)


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("random", "random answers"),
        ("probabilities", "probabilities in the place of logits"),
        ("no gradient", "no gradient"),
        ("weights elsewhere", "weights elsewhere"),
    ],
)
def test_what_makes_figures_doubtful_stands_in_report_and_card(how: str, name: str) -> None:
    report = measured(Brightness(how), suite="quick")
    assert report.doubts is not None
    assert [doubt for doubt in report.doubts if doubt.startswith(f"{name}:")]
    assert any(line.startswith(name) for line in doubts(report))
    assert f"**Warning.** {name}" in report_card("theirs", report)
    assert RobustnessReport.model_validate_json(report.model_dump_json()) == report


def test_nothing_is_doubted_of_a_plain_network() -> None:
    report = measured(Brightness())
    assert report.doubts == ()
    assert report.is_of_others
    assert not report.scores_only


def test_a_network_may_write_over_its_images() -> None:
    """Normalising in place is common; it wrote over the images that attacks go on with."""
    plain, in_place = measured(Brightness()), measured(Brightness("in place"))
    assert in_place.doubts == ()
    assert in_place.worst_case_accuracy == plain.worst_case_accuracy


def test_few_queries_are_a_screening() -> None:
    assert measured(Brightness("no gradient"), suite="quick").is_screening


def test_a_network_without_gradients_was_attacked_by_its_scores() -> None:
    report = measured(Brightness("no gradient"))
    assert report.scores_only
    assert not report.is_screening
    assert not report.is_unchecked
    card = report_card("theirs", report)
    assert "saw only the scores" in card
    assert "--suite standard" not in card
    assert "too few images" not in card


def test_nobody_here_knows_whether_attacks_know_how_a_network_of_others_decides() -> None:
    report = measured(Brightness())
    assert {item.name: holds for item, holds in tick_off(report)}["adaptive"] is False
    ours = report.model_copy(update={"doubts": None})
    assert {item.name: holds for item, holds in tick_off(ours)}["adaptive"] is True
    declared = report.model_copy(update={"fold": "max"})
    assert {item.name: holds for item, holds in tick_off(declared)}["adaptive"] is True


def test_the_check_of_the_floor_says_nothing_of_gradients() -> None:
    lowest = SanityCheck(name=FLOOR_CHECK, expectation="it does", passed=True, figures={})
    report = measured(Brightness()).model_copy(update={"sanity": (lowest,)})
    assert report.is_unchecked
    assert {item.name: holds for item, holds in tick_off(report)}["sanity"] is False


def test_a_card_says_what_limited_the_attacks_and_what_checks_broke() -> None:
    report = measured(Brightness()).model_copy(update={"lattice": "8bit", "broken_by_checks": 3})
    card = report_card("theirs", report)
    assert "could only make images of 8 bits" in card
    assert "3 images that the attacks left were broken by sanity checks" in card


def test_a_report_that_says_more_is_not_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "their.robustness.json"
    strong = measured(Brightness())
    assert beside_a_better_one(strong, file, Output()) == file
    write_report("their", strong, file, SILENT)
    assert beside_a_better_one(strong, file, Output()) == file
    weak = measured(Brightness(), suite="quick", images=20)
    free = beside_a_better_one(weak, file, Output())
    assert free == tmp_path / "their.robustness-2.json"
    assert "stays: the new report says less than it (weaker attacks, fewer images)" in capsys.readouterr().err
    write_report("their", weak, free, SILENT)
    assert beside_a_better_one(weak, file, SILENT) == free, "which says no more"
    write_report("their", strong, free, SILENT)
    assert beside_a_better_one(weak, file, SILENT) == tmp_path / "their.robustness-3.json"
    assert read_report(file) == strong


@pytest.mark.parametrize("other", [{"weights_digest": "of other weights"}, {"takes": "NCHW 255"}])
def test_a_report_of_another_model_is_not_lost_either(
    other: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, report = tmp_path / "their.robustness.json", measured(Brightness())
    report = report.model_copy(update={"takes": "images in [0, 1]"})
    write_report("their", report, file, SILENT)
    assert beside_a_better_one(report, file, SILENT) == file
    stranger = report.model_copy(update=other)
    second = beside_a_better_one(stranger, file, Output())
    assert second == tmp_path / "their.robustness-2.json"
    assert "of another model" in capsys.readouterr().err
    assert keeping_corruptions(stranger, report.model_copy(update={"corruptions": CORRUPTIONS})) == stranger
    write_report("their", stranger, second, SILENT)
    assert beside_a_better_one(stranger, file, SILENT) == second, "its own is replaced, as ever"
    corruptions = MeasuredCorruptions(
        file, CORRUPTIONS, stranger.weights_digest, None, "their", stranger.takes
    )
    corruptions.store(SILENT)
    assert (read_report(second), read_report(file)) == (
        stranger.model_copy(update={"corruptions": CORRUPTIONS}),
        report,
    )


def test_an_older_report_does_not_say_what_images_were_given(tmp_path: Path) -> None:
    file, report = tmp_path / "their.robustness.json", measured(Brightness())
    write_report("their", report.model_copy(update={"takes": None}), file, SILENT)
    assert beside_a_better_one(report.model_copy(update={"takes": "NCHW 255"}), file, SILENT) == file


def test_a_file_that_is_no_report_stays(tmp_path: Path) -> None:
    file = tmp_path / "their.robustness.json"
    file.write_text("{}")
    assert beside_a_better_one(measured(Brightness()), file, SILENT) == tmp_path / "their.robustness-2.json"
    assert file.read_text() == "{}"


def test_a_callable_that_returns_another_model_each_time_is_not_measured_as_one() -> None:
    _require_one_model([("digest", "1 2"), ("digest", "1 2")])
    with pytest.raises(UsageError, match="another model in each process"):
        _require_one_model([("digest", "1 2"), ("other", "1 2")])
    with pytest.raises(UsageError, match="another model in each process"):
        _require_one_model([("digest", "1 2"), ("digest", "2 1")])


def test_answers_tell_a_network_from_the_same_one_that_is_surer() -> None:
    images = torch.linspace(0, 255, 40).view(-1, 1, 1, 1).expand(-1, 4, 4, 3).byte().numpy()
    split = Split(images, torch.zeros(40, dtype=torch.int64).numpy())
    told = {_answers(Brightness(scale=scale), split, torch.device("cpu")) for scale in (1, 1, 50)}
    assert len(told) == 2
