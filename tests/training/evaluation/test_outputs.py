"""What an evaluation leaves behind beside its figures: rows, images, a curve over eps."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from ducat_serve.attacked_examples import AttackedExamples
from ducat_serve.deployed import Deployed, load
from ducat_serve.errors import UsageError
from ducat_serve.output import Output
from ducat_serve.report import CurvePoint
from ducat_serve.threat_model import ThreatModel
from training.attacks.apgd_ce import APGDCrossEntropy
from training.attacks.base import Attack, Task
from training.attacks.pair_margin import PairMargin
from training.attacks.pgd import PGD
from training.attacks.square import Square
from training.batches import DeviceSplit
from training.data import load_dataset
from training.data.cache import Split
from training.evaluation.adversarial_images import new_folder, write_adversarial_images
from training.evaluation.curve import measure_curve
from training.evaluation.evaluate import Measured, Plan, Subject, measure
from training.evaluation.kept import ExampleKeeper
from training.evaluation.per_image import write_per_image
from training.evaluation.plot import plot_curve
from training.evaluation.robustbench import robustbench_entry
from training.evaluation.state import EvaluationState

EPS = 0.1
INDEX = list(range(100, 132))
PLAN = Plan(
    ThreatModel(norm="linf", eps=EPS),
    (PGD(), APGDCrossEntropy(), PairMargin(temperature=1)),
    batch_size=16,
    sanity=False,
    keep_images=True,
)


@pytest.fixture(scope="module")
def subject(run_folder: Path) -> Subject:
    model: Deployed = load(run_folder / "model.safetensors")
    test = load_dataset("digits").test
    data = DeviceSplit.of(Split(test.images[INDEX], test.labels[INDEX]), torch.device("cpu"))
    return Subject(model, data, tuple(str(i) for i in range(10)), "digest", "digits", "test")


@pytest.fixture(scope="module")
def measured(subject: Subject) -> Measured:
    found = measure(subject, PLAN, Output())
    report = found.report
    assert report.clean_accuracy > report.worst_case_accuracy, "nothing to keep: the test would say nothing"
    return found


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_say_the_same_as_the_report(measured: Measured, tmp_path: Path) -> None:
    write_per_image(tmp_path / "rows.csv", measured, INDEX)
    rows, report = rows_of(tmp_path / "rows.csv"), measured.report
    assert [int(row["index"]) for row in rows] == INDEX
    right = [row for row in rows if row["label"] == row["clean_prediction"]]
    assert len(right) == round(report.clean_accuracy * len(rows))
    assert all((float(row["clean_margin"]) > 0) == (row in right) for row in rows)
    held = [row for row in right if not row["broken_by"]]
    assert len(held) == round(report.worst_case_accuracy * len(rows))
    assert all(row["prediction"] == row["label"] for row in held)
    for attack in report.attacks:
        broken = [row for row in rows if row["broken_by"] == attack.name]
        assert len(broken) == round(attack.examples * (1 - attack.accuracy))
        assert all(row["prediction"] != row["label"] for row in broken)


def test_kept_images_are_in_the_ball_and_fool_the_model(
    subject: Subject, measured: Measured, tmp_path: Path
) -> None:
    with new_folder(tmp_path / "kept") as folder:
        lost = write_adversarial_images(folder, subject, PLAN, measured, INDEX)
    stored = load_file(tmp_path / "kept" / "adversarial.safetensors")
    images, labels = stored["images"], stored["labels"]
    clean = subject.data.images.double() / 255
    assert (images.double() - clean).abs().max() <= EPS
    assert images.min() >= 0
    assert images.max() <= 1
    with torch.no_grad():
        right = subject.model(images).argmax(dim=1) == labels
    assert right.float().mean().item() == pytest.approx(measured.report.worst_case_accuracy)

    files = sorted((tmp_path / "kept").glob("*.png"))
    assert len(files) == int(stored["fools"].sum()) - lost > 0
    for file in files:
        number, label, prediction = map(int, file.stem.split("-"))
        levels = torch.from_numpy(np.array(Image.open(file)).transpose(2, 0, 1))
        position = INDEX.index(number)
        assert ((levels.double() / 255) - clean[position]).abs().max() <= EPS
        with torch.no_grad():
            logits = subject.model(levels[None].float() / 255)
        assert int(logits.argmax()) == prediction != label == int(labels[position])


def test_images_of_8_bits_are_all_that_a_lattice_allows(subject: Subject) -> None:
    found = measure(subject, replace(PLAN, eight_bit=True), Output())
    assert found.examples.images is not None
    levels = found.examples.images.double() * 255
    assert (levels - levels.round()).abs().max() < 1e-4
    assert found.report.lattice == "8bit"
    assert "8-bit images only" in found.report.summary()


@dataclass(frozen=True)
class Stops(Attack):
    """Ctrl-C in the place of an attack."""

    name: ClassVar[str] = "stops"

    def __call__(self, task: Task) -> Tensor:
        raise KeyboardInterrupt


class Masked(nn.Module):
    """Its decision is the mean brightness; where an image is smooth, nothing of that has a gradient."""

    def forward(self, images: Tensor) -> Tensor:
        level, spread = images.mean(dim=(1, 2, 3)) - 0.5, images.flatten(1).std(dim=1)
        level = torch.where(spread > 0.12, level, level.detach() + 0 * images.sum(dim=(1, 2, 3)))
        return torch.stack([level, -level], dim=1)


def test_a_slow_attack_that_broke_at_a_smaller_eps_has_its_name_in_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 0.1 sanity checks fail and squares follow; at 0.5 gradients break all that is left."""
    monkeypatch.setattr(
        "training.evaluation.sanity.gradients_foretell", lambda *_: None
    )  # fails at every eps
    images = (0.5 + torch.linspace(0.05, 0.3, 60)).view(-1, 1, 1, 1).expand(60, 3, 8, 8).contiguous()
    model = Deployed(Masked(), "none").eval()
    data = DeviceSplit(images, model(images).argmax(dim=1))
    subject = Subject(model, data, ("dark", "bright"), "digest", "test", "test")
    plan = Plan(ThreatModel(norm="linf", eps=0.5), (PGD(),), (Square(queries=300),), batch_size=64)
    curve = measure_curve(subject, plan, [0.1, 0.5], Output())
    assert [attack.name for attack in curve.report.attacks] == ["pgd"]
    write_per_image(tmp_path / "rows.csv", curve, range(60))
    assert {row["broken_by"] for row in rows_of(tmp_path / "rows.csv")} == {"pgd", "check", "square"}


@pytest.mark.parametrize("finished", [1, pytest.param(3, marks=pytest.mark.extended)])
def test_a_resumed_evaluation_keeps_the_images_of_before(
    subject: Subject, tmp_path: Path, finished: int
) -> None:
    def kept(keeper: ExampleKeeper) -> AttackedExamples:
        return keeper.examples("0" * 64, PLAN.threat_model)

    whole, interrupted, resumed = ExampleKeeper(), ExampleKeeper(), ExampleKeeper()
    measure(subject, PLAN, Output(), keeper=whole)
    state = EvaluationState(tmp_path / "x.partial", {})
    attacks = (*PLAN.attacks[:finished], Stops())
    with pytest.raises(KeyboardInterrupt):
        measure(subject, replace(PLAN, attacks=attacks), Output(), state, keeper=interrupted)
    measure(subject, PLAN, Output(), state, keeper=resumed)
    assert any(one.fooled for one in kept(whole).examples)
    assert kept(resumed) == kept(whole)


def test_what_breaks_in_a_smaller_ball_is_kept_too(subject: Subject) -> None:
    keeper = ExampleKeeper()
    plan = replace(PLAN, threat_model=ThreatModel(norm="linf", eps=0.5))
    found = measure_curve(subject, plan, [0.45], Output(), keeper=keeper)
    assert found.report.attacks[0].examples == 0, "at the plan's own radius nothing was left to attack"
    assert any(one.fooled for one in keeper.examples("0" * 64, plan.threat_model).examples)


def test_a_curve_never_rises_and_keeps_what_broke_at_smaller_eps(subject: Subject, tmp_path: Path) -> None:
    state = EvaluationState(tmp_path / "x.partial", {"threat model": "?"})
    curve = measure_curve(subject, PLAN, [0.2, 0.02, 0.05], Output(), state)
    report = curve.report
    assert report.eps == EPS
    assert report.curve is not None
    assert [point.eps for point in report.curve] == [0.02, 0.05, EPS, 0.2]
    worst = [point.worst_case_accuracy for point in report.curve]
    assert worst == sorted(worst, reverse=True)
    assert worst[0] > worst[-1]
    alone = measure(subject, replace(PLAN, threat_model=ThreatModel(norm="linf", eps=0.02)), Output())
    assert worst[0] == alone.report.worst_case_accuracy
    broken = alone.examples.clean & ~alone.examples.right
    assert not curve.examples.right[broken].any()
    assert alone.examples.images is not None
    assert curve.examples.images is not None
    assert torch.equal(curve.examples.images[broken], alone.examples.images[broken])
    assert len(list(tmp_path.iterdir())) == 4

    again = measure_curve(subject, PLAN, [0.2, 0.02, 0.05], Output(), state)
    assert again.report.curve == report.curve, "resumed from what is stored"
    assert torch.equal(again.examples.images, curve.examples.images)  # type: ignore[arg-type]
    state.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    def fill() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "half.png").write_bytes(b"")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fill()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(UsageError, match="not an empty folder"), new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "precious").exists()


def test_a_curve_can_be_drawn_and_says_the_same_each_time(measured: Measured, tmp_path: Path) -> None:
    point = CurvePoint(eps=8 / 255, worst_case_accuracy=0.5, worst_case_interval=(0.4, 0.6))
    report = measured.report.model_copy(update={"curve": (point, point.model_copy(update={"eps": 16 / 255}))})
    files = plot_curve(report, tmp_path / "curve")
    assert [file.name for file in files] == ["curve.png", "curve.svg"]
    first = [file.read_bytes() for file in files]
    assert [file.read_bytes() for file in plot_curve(report, tmp_path / "curve")] == first
    with pytest.raises(ValueError, match="no curve"):
        plot_curve(measured.report, tmp_path / "none")


def test_a_leaderboard_entry_calls_only_autoattack_by_its_name(measured: Measured) -> None:
    with pytest.raises(UsageError, match="A screening is no worst case"):
        robustbench_entry(measured.report, "ResNet")
    strong = measured.report.attacks[0].model_copy(update={"name": "closest-first"})
    searched = measured.report.model_copy(update={"attacks": (strong,)})
    with pytest.raises(UsageError, match="Attacks by scores alone"):
        robustbench_entry(searched.model_copy(update={"artefact": "onnx"}), "ResNet")
    entry = json.loads(robustbench_entry(searched, "ResNet"))
    assert entry["additional_data"] is None, "a text would be read as a yes or a no"
    assert "by closest-first" in entry["footnote"]
    assert entry["unreliable"] is searched.is_unchecked
    doubtful = searched.model_copy(update={"doubts": ("random answers: each time",)})
    assert json.loads(robustbench_entry(doubtful, "ResNet"))["unreliable"] is True
    assert entry["external"] == f"{100 * measured.report.worst_case_accuracy:.2f}"
    assert "autoattack_acc" not in entry
    assert (entry["eps"], entry["architecture"]) == ("0.1", "ResNet")
    for title, name in (("CIFAR-10", "cifar10"), ("CIFAR-10 (JPEG)", "CIFAR-10 (JPEG)")):
        of_title = searched.model_copy(update={"dataset": title})
        assert json.loads(robustbench_entry(of_title, "ResNet"))["dataset"] == name
    alone = measured.report.attacks[0].model_copy(update={"name": "autoattack"})
    report = measured.report.model_copy(update={"attacks": (alone,)})
    assert "autoattack_acc" in json.loads(robustbench_entry(report, "ResNet"))
    for other in ({"lattice": "8bit"}, {"broken_by_checks": 1}):
        assert "external" in json.loads(robustbench_entry(report.model_copy(update=other), "ResNet"))
    with pytest.raises(UsageError, match="has leaderboards for"):
        robustbench_entry(report.model_copy(update={"norm": "l1"}), "ResNet")
