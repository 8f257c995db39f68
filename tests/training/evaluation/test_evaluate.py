"""Evaluation: the deployed function only, per-example worst case, a report that travels."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from ducat_serve.checkpoint import read_spec
from ducat_serve.cli.main import run
from ducat_serve.deployed import Deployed, load
from ducat_serve.errors import UsageError, VerificationError
from ducat_serve.output import Output
from ducat_serve.predictor import Predictor
from ducat_serve.report import RobustnessReport
from ducat_serve.threat_model import ThreatModel
from training.attacks.base import Attack, Task
from training.attacks.pgd import PGD
from training.batches import DeviceSplit
from training.data import load_dataset
from training.data.cache import Split
from training.evaluation.evaluate import Plan, Subject, evaluate
from training.evaluation.wilson import wilson

THREAT = ThreatModel(norm="linf", eps=0.1)


def subject(model: Deployed, data: DeviceSplit) -> Subject:
    return Subject(model, data, tuple("0123456789"), "digest", "digits", "test")


def measure(
    model: Deployed, data: DeviceSplit, batch_size: int = 64, threat: ThreatModel = THREAT
) -> RobustnessReport:
    plan = Plan(threat, (PGD(),), batch_size=batch_size, sanity=False)
    return evaluate(subject(model, data), plan, Output())


@pytest.fixture(scope="module")
def test_split() -> DeviceSplit:
    return DeviceSplit.of(load_dataset("digits").test, torch.device("cpu"))


def test_a_raw_2c_model_is_refused(checkpoint: Path, test_split: DeviceSplit) -> None:
    with pytest.raises(UsageError, match="10 logits, but this model returns 20"):
        measure(Deployed(load(checkpoint, folded=False), "none").eval(), test_split)


def test_clean_accuracy_is_what_counting_gives(checkpoint: Path, test_split: DeviceSplit) -> None:
    model = load(checkpoint)
    with torch.no_grad():
        answers = model(test_split.images.float() / 255).argmax(dim=1)
    report = measure(model, test_split)
    assert report.clean_accuracy == pytest.approx(
        (answers == test_split.labels).double().mean().item(), abs=1e-7
    )
    assert report.worst_case_accuracy < report.clean_accuracy
    assert report.attacks[0].examples == round(report.clean_accuracy * len(test_split))
    assert report.examples == len(test_split) == 359
    right = round(report.clean_accuracy * 359)
    assert report.clean_interval == wilson(right, 359)  # stored as it was measured
    assert report.attacks[0].settings == {"steps": 20}
    assert report.attacks[0].knows_pairs is False


def test_batch_size_does_not_change_clean_accuracy(checkpoint: Path, test_split: DeviceSplit) -> None:
    plans = [
        Plan(THREAT, (PGD(steps=1),), batch_size=size, sanity=False, legacy_attacks=())
        for size in (7, 100, 1000)
    ]
    model = subject(load(checkpoint), test_split)
    assert len({evaluate(model, plan, Output()).clean_accuracy for plan in plans}) == 1


def test_a_model_in_train_mode_is_refused(checkpoint: Path, test_split: DeviceSplit) -> None:
    """One module is enough; and the attacks themselves leave modes alone (see test_attacks)."""
    model = load(checkpoint)
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).train()
    with pytest.raises(UsageError, match="train mode"):
        measure(model, test_split)


@pytest.mark.parametrize(
    ("threat", "word"),
    [
        (ThreatModel(norm="l1", eps=193), "larger than any difference"),
        (ThreatModel(norm="l2", eps=14), "larger than any difference"),  # sqrt(192) = 13.86
    ],
)
def test_an_eps_that_is_not_in_pixels(
    checkpoint: Path, test_split: DeviceSplit, threat: ThreatModel, word: str
) -> None:
    with pytest.raises(UsageError, match=word):
        measure(load(checkpoint), test_split, threat=threat)


def test_fewer_images_than_classes_are_measured(checkpoint: Path, test_split: DeviceSplit) -> None:
    """The interval says how little that tells."""
    report = measure(load(checkpoint), DeviceSplit(test_split.images[:5], test_split.labels[:5]))
    assert report.examples == 5
    assert len(report.per_class) == 10


def test_labels_images_and_answers_that_cannot_be(checkpoint: Path, test_split: DeviceSplit) -> None:
    model = load(checkpoint)
    images, labels = test_split.images, test_split.labels
    with pytest.raises(UsageError, match="Labels must be 0 to 9, found 10"):
        measure(model, DeviceSplit(images, labels + 1))
    with pytest.raises(UsageError, match="There are no images"):
        measure(model, DeviceSplit(images[:0], labels[:0]))
    with pytest.raises(UsageError, match=r"must be in \[0, 1\]"):
        DeviceSplit(images.float() / 100, labels)  # would reach beyond 1
    with pytest.raises(UsageError, match="359 images and 358 labels"):
        DeviceSplit(images, labels[1:])

    class Broken(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.full((len(pixels), 20), torch.nan)

    with pytest.raises(VerificationError, match="NaN to 359 clean images"):
        measure(Deployed(Broken(), "max").eval(), test_split)


def test_wilson_interval_against_published_values() -> None:
    """Newcombe 1998, table I: 81/263 and 0/20 (Wilson, no continuity correction)."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    for count in range(1, 200):  # exact at the ends: a plot draws distances to them
        assert wilson(0, count)[0] == 0.0
        assert wilson(count, count)[1] == 1.0
    for right, count in ((1, 7), (59, 120), (9_981, 10_000)):
        known = binomtest(right, count).proportion_ci(0.95, method="wilson")
        assert wilson(right, count) == pytest.approx((known.low, known.high), abs=1e-12)
    with pytest.raises(ValueError, match="at least one trial"):
        wilson(0, 0)


@pytest.fixture(scope="module")
def evaluated(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(run_folder, folder)
    assert (
        run(
            [
                "evaluate",
                str(folder),
                "--attack",
                "pgd",
                "--max-examples",
                "60",
                "--out",
                str(folder / "r.json"),
            ]
        )
        == 0
    )
    return folder


def test_the_report_travels_into_checkpoint_and_onnx(evaluated: Path, run_folder: Path) -> None:
    report = read_spec(evaluated / "model.safetensors").robustness
    assert report is not None
    assert report == RobustnessReport.model_validate_json((evaluated / "r.json").read_text())
    assert report.examples == 60
    assert report.weights_digest == read_spec(run_folder / "model.safetensors").weights_digest
    assert run(["export", str(evaluated)]) == 0
    assert Predictor(evaluated / "model.onnx", "cpu").spec.robustness == report


def test_a_report_of_other_weights_is_refused(evaluated: Path) -> None:
    spec = read_spec(evaluated / "model.safetensors")
    forged = spec.model_copy(update={"weights_digest": "0" * 64})
    with pytest.raises(VerificationError, match="measured on other weights"):
        type(spec).from_json(forged.to_json(), "forged")


def test_inspect_shows_it_or_says_not_measured(
    evaluated: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(evaluated), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spec"]["robustness"]["examples"] == 60
    assert run(["inspect", str(run_folder), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["spec"]["robustness"] == "robustness not measured"
    assert run(["inspect", str(run_folder)]) == 0
    assert "robustness not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "code", "word"),
    [
        (["--eps", "0"], 2, "no attack"),
        (["--eps", "-1/255"], 2, "negative"),
        (["--norm", "l2"], 2, "needs --eps"),
        (["--norm", "linff"], 2, "linff"),
        (["--eps", "8"], 2, "larger than any difference"),
        (["--suite", "standart"], 2, "Did you mean 'standard'"),
        (["--attack", "pdg"], 2, "Did you mean 'pgd'"),
        (["--checkpoint", "model.safetensors"], 2, "is for a .onnx"),
        (["--dataset", "digitz"], 2, "Did you mean 'digits'"),
        (["--dataset", "folder:/nowhere"], 4, "no folder"),
    ],
)
def test_bad_requests(
    run_folder: Path, flags: list[str], code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run_folder / "model.safetensors").read_bytes()
    assert run(["evaluate", str(run_folder), *flags]) == code
    assert word in capsys.readouterr().err
    assert (run_folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("bar", "code"),
    [
        ("clean=0.01,worst_case=0.0", 0),
        ("worst_case=0.999", 3),
        ("clean=1.0", 3),
        ("clean=80", 2),
        ("robust=0.5", 2),
        ("clean", 2),
    ],
)
def test_release_gate(evaluated: Path, bar: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The lower end of the interval counts: even 60 right of 60 are not 100 %."""
    flags = ["--attack", "closest-first", "--max-examples", "60", "--bar", bar, "--json"]
    assert run(["evaluate", str(evaluated), *flags]) == code
    captured = capsys.readouterr()
    document = json.loads(captured.out)  # one document, be it the report or the error
    assert ("error" in document) == (code != 0)
    if code == 3:
        assert "Below the bar" in captured.err
        assert read_spec(evaluated / "model.safetensors").robustness is not None  # measured all the same


def test_a_model_without_dummies_has_no_dummy_mass(tmp_path: Path) -> None:
    model = Deployed(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), "none").eval()
    data = DeviceSplit.of(load_dataset("digits").val, torch.device("cpu"))
    report = measure(model, data)
    assert report.dummy_mass is None
    assert report.legacy_2c_accuracy is None


@dataclass(frozen=True)
class Darken(Attack):
    """Fools where the label has this parity."""

    name: ClassVar[str] = "darken"
    parity: int

    def __call__(self, task: Task) -> torch.Tensor:
        chosen = (task.labels % 2 == self.parity).view(-1, 1, 1, 1)
        return torch.where(chosen, torch.zeros_like(task.images), task.images)


def test_worst_case_is_per_example() -> None:
    """Two attacks that each fool a different half leave nobody."""

    class Bright(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            level = (images[:, 0, 0, 0] * 255).round().long() - 1
            return (
                nn.functional.one_hot(level.clamp(0, 9), 10).float()
                + (level < 0).float().view(-1, 1) * torch.eye(10)[9] * 5
            )

    labels = np.arange(12) % 4
    images = np.zeros((12, 8, 8, 3), np.uint8) + (labels + 1).astype(np.uint8)[:, None, None, None]
    data = DeviceSplit.of(Split(images, labels), torch.device("cpu"))
    plan = Plan(THREAT, (Darken(0), Darken(1)), batch_size=3, sanity=False)
    report = evaluate(subject(Deployed(Bright(), "none").eval(), data), plan, Output())
    assert report.clean_accuracy == 1
    assert [a.worst_case_accuracy for a in report.attacks] == [0.5, 0.0]
    assert [a.examples for a in report.attacks] == [12, 6]
    assert [a.settings for a in report.attacks] == [{"parity": 0}, {"parity": 1}]


@pytest.mark.parametrize("command", ["inspect", "evaluate", "export", "compare"])
def test_a_report_edited_by_hand_is_refused(
    evaluated: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A better number in the metadata, of the same length, so that the file is still a valid one."""
    data = (evaluated / "model.safetensors").read_bytes()
    report = read_spec(evaluated / "model.safetensors").robustness
    assert report is not None
    was = f'worst_case_accuracy\\":{report.worst_case_accuracy}'.encode()
    better = was[:-3] + (b"999" if was[-3:] != b"999" else b"998")
    assert was in data
    forged = tmp_path / "model.safetensors"
    forged.write_bytes(data.replace(was, better))
    assert run([command, str(forged)]) == 3
    assert "edited by hand" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]
