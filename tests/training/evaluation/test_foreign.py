"""Models of others: measured as ours are, and what is refused or doubted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ducat_serve import evaluate_model
from ducat_serve.deployed import Deployed, load
from ducat_serve.errors import UsageError
from ducat_serve.output import Output
from ducat_serve.spec import Fold
from ducat_serve.threat_model import ThreatModel
from training.attacks.pgd import PGD
from training.attacks.square import Square
from training.batches import DeviceSplit, to_pixels
from training.data import load_dataset
from training.data.cache import Split
from training.evaluation.doubts import doubts
from training.evaluation.evaluate import Plan, Subject, evaluate
from training.evaluation.foreign import import_model
from training.evaluation.state_digest import state_digest

THREAT = ThreatModel(norm="linf", eps=0.1)
IMAGES = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Linear(nn.Module):
    """Ten logits of 192 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images.flatten(1))
        return logits


class Wrapped(nn.Module):
    """Something done to the logits of a linear model."""

    count: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear, self.kind = Linear(), kind
        self.register_buffer("count", torch.zeros(1))

    def forward(self, images: Tensor) -> object:
        logits = self.linear(images)
        match self.kind:
            case "random":
                return logits + torch.rand_like(logits)
            case "batch":
                return logits - logits.mean(dim=0)
            case "probabilities":
                return logits.softmax(dim=1)
            case "counts":
                self.count += 1
                return logits
            case "tuple":
                return (logits,)
            case "features":
                return logits[:, :, None]
            case "undecided":
                return logits * float("nan")
            case "quantised":
                return (logits.detach() * 10).round() / 10
        return logits


@pytest.fixture(scope="module")
def few(run_folder: Path) -> DeviceSplit:
    del run_folder  # only so that the data set is decoded
    test = load_dataset("digits").test
    return DeviceSplit.of(Split(test.images[:60], test.labels[:60]), torch.device("cpu"))


def test_our_own_network_as_a_foreign_one_gets_the_same_figures(run_folder: Path, few: DeviceSplit) -> None:
    """With dummies declared, from floats in the place of bytes, and with its own pairs of logits."""
    ours = load(run_folder / "model.safetensors")
    few = DeviceSplit(few.images[:19], few.labels[:19])
    subject = Subject(ours, few, tuple("0123456789"), "digest", "digits", "test")
    expected = evaluate(subject, Plan(THREAT, (PGD(),)), Output())
    raw = ours.classifier
    found = evaluate_model(
        raw, to_pixels(few.images), few.labels, THREAT, attacks=("pgd",), fold=ours.fold, output=Output()
    )
    assert found.clean_accuracy == expected.clean_accuracy > 0.3
    assert found.worst_case_accuracy == expected.worst_case_accuracy
    assert found.legacy_2c_accuracy == expected.legacy_2c_accuracy
    assert [c.label for c in found.per_class] == list("0123456789")
    folded = evaluate_model(ours, few.images, few.labels, THREAT, attacks=("pgd",), output=Output())
    assert folded.clean_accuracy == expected.clean_accuracy
    assert folded.weights_digest == state_digest(ours) != found.weights_digest


@pytest.mark.parametrize(
    ("kind", "doubt"),
    [
        ("random", "random answers"),
        ("batch", "answers that depend on the batch"),
        ("probabilities", "probabilities in the place of logits"),
        ("plain", None),
        ("undecided", None),  # NaN is refused elsewhere, and equals nothing
    ],
)
def test_what_makes_figures_doubtful_has_a_name(kind: str, doubt: str | None) -> None:
    assert [d.name for d in doubts(Wrapped(kind).eval(), IMAGES)] == ([doubt] if doubt else [])


def test_doubts_are_said(few: DeviceSplit, capsys: pytest.CaptureFixture[str]) -> None:
    model = Wrapped("probabilities").eval()
    evaluate_model(model, few.images, few.labels, THREAT, attacks=("pgd",), output=Output())
    assert "probabilities in the place of logits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "message"),
    [("counts", "changes its own state_dict"), ("tuple", "returns tuple"), ("features", r"\[8, 10, 1\]")],
)
def test_what_is_no_classifier_is_refused(kind: str, message: str, few: DeviceSplit) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate_model(Wrapped(kind).eval(), few.images, few.labels, THREAT, output=Output())


def test_a_model_of_other_sizes_or_in_train_mode_is_refused(few: DeviceSplit) -> None:
    with pytest.raises(UsageError, match="does not take images of 3 x 9 x 9"):
        evaluate_model(Linear().eval(), torch.rand(20, 3, 9, 9), few.labels[:20], THREAT, output=Output())
    with pytest.raises(UsageError, match="train mode"):
        evaluate_model(Linear(), few.images, few.labels, THREAT, output=Output())
    with pytest.raises(UsageError, match="no dummy for every class"):
        odd = nn.Sequential(nn.Flatten(), nn.Linear(192, 9)).eval()
        evaluate_model(odd, few.images, few.labels, THREAT, fold="max", output=Output())
    with pytest.raises(UsageError, match=r"must be in \[0, 1\]"):
        evaluate_model(Linear().eval(), 255 * IMAGES, few.labels[:8], THREAT, output=Output())


@pytest.mark.parametrize(
    ("outputs", "fold", "message", "next_step"),
    [
        (20, "none", "20 classes apart, and the data set has 10", "--fold max or --fold lse"),
        (12, "none", "12 classes apart, and the data set has 10", "its own data set"),
        (12, "max", r"6 classes apart and their dummies \(--fold max\), and the data set has 10", "its own"),
    ],
)
def test_a_model_of_other_classes_is_refused(
    outputs: int, fold: Fold, message: str, next_step: str, few: DeviceSplit
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, outputs)).eval()
    with pytest.raises(UsageError, match=message) as raised:
        evaluate_model(model, few.images, few.labels, THREAT, fold=fold, class_names="0123456789")
    assert next_step in (raised.value.next_step or "")


def test_a_model_without_gradients_is_attacked_by_its_scores(
    few: DeviceSplit, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Wrapped("quantised").eval()
    report = evaluate_model(
        model, few.images, few.labels, THREAT, attacks=("pgd", Square().name), output=Output()
    )
    assert [attack.name for attack in report.attacks] == [Square().name]
    assert "no gradient" in capsys.readouterr().err


def test_importing_is_from_where_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "somebodys.py").write_text(
        "import torch\n"
        "def make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))\n"
        "def text():\n    return 'model'\n"
        "def fails():\n    raise RuntimeError('no weights')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.path", [entry for entry in __import__("sys").path if entry not in ("", str(tmp_path))]
    )
    with pytest.raises(UsageError, match="no module somebodys") as refused:
        import_model("somebodys:make", output=Output())
    assert "--import-from ." in str(refused.value.next_step)
    model = import_model("somebodys:make", Path(), output=Output())
    assert isinstance(model, nn.Sequential)
    assert not model.training
    for name, message in {
        "somebodys:text": "returned str",
        "somebodys:fails": "no weights",
        "somebodys:nothing": "no callable named nothing",
    }.items():
        with pytest.raises(UsageError, match=message):
            import_model(name, tmp_path, output=Output())


def test_a_digest_is_of_all_weights() -> None:
    model = Linear()
    before = state_digest(model)
    with torch.no_grad():
        model.layer.bias[3] += 1e-6
    assert state_digest(model) != before
    assert len(state_digest(Deployed(model.bfloat16(), "none"))) == 64
