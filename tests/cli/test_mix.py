"""`ducat mix`: one checkpoint from two, fitted on val, and what cannot be mixed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ducat_serve.library.mixing as mixing
from ducat_serve.bundled import model_path
from ducat_serve.checkpoint import read_checkpoint, read_spec, weights_digest
from ducat_serve.cli.main import run
from ducat_serve.deployed import load, towers_of
from ducat_serve.errors import UsageError, VerificationError
from ducat_serve.library.mixing import Towers, mix
from ducat_serve.output import Output
from ducat_serve.pairs import fold_logits
from ducat_serve.predictor import Predictor
from ducat_serve.spec import ModelSpec, Switch
from tests.support.checkpoints import forged
from tests.support.towers import tower_checkpoint
from training.attacks.apgd import APGD
from training.attacks.losses import margin
from training.attacks.pgd import PGD
from training.data import load_dataset
from training.mixture import answers
from training.mixture.answers import Question

QUIET = Output(silent=True)
ROBUST = "digits-small"


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks of a few steps: what is tested here is what is made of their answers."""
    monkeypatch.setattr("training.mixture.answers.SEARCHES", {"apgd-margin": APGD(margin, 5)})


@pytest.fixture(scope="module")
def standard(run_folder: Path) -> Path:
    """Some network that was trained on digits with other settings, with dummies of its own."""
    return run_folder / "model.safetensors"


@pytest.fixture(scope="module")
def mixed(standard: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("mixed") / "new" / "model.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.mixture.answers.SEARCHES", {"apgd-margin": APGD(margin, 5)})
        mix(Towers(standard, ROBUST), out=target, give_up=20, output=QUIET)
    return target


def test_the_towers_are_whole_and_the_switch_is_between_them(mixed: Path, standard: Path) -> None:
    spec, tensors = read_checkpoint(mixed)
    robust = model_path(ROBUST, "safetensors")
    assert spec.towers is not None
    for name, tower, source in zip(("standard", "robust"), spec.towers, (standard, robust), strict=True):
        prefix = f"{name}.classifier.network."
        part = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        original, weights = read_checkpoint(source)
        assert tower.weights_digest == original.weights_digest == weights_digest(part)
        assert tower.fold == original.fold
        assert {key: t.tolist() for key, t in part.items()} == {key: t.tolist() for key, t in weights.items()}

    images = (
        torch.from_numpy(load_dataset("digits").test.images[:50].transpose(0, 3, 1, 2).copy()).float() / 255
    )
    model = load(mixed)
    assert isinstance(spec.fold, Switch)
    with torch.no_grad():
        raw = torch.cat([load(standard)(images), load(robust)(images)], dim=1)
        torch.testing.assert_close(model(images), fold_logits(raw, spec.fold))
    towers = towers_of(model)
    assert towers is not None
    assert spec.threat_model == read_spec(robust).threat_model
    assert spec.num_logits == 20


def test_it_exports_with_parity_and_says_who_answered(
    mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = mixed.with_name("exported.onnx")
    assert run(["export", str(mixed), "--out", str(target), "--json"]) == 0
    parity = json.loads(capsys.readouterr().out)["parity"]
    assert parity["images"] == parity["labels_compared"] + parity["undecided"]
    images = load_dataset("digits").test.images
    answer = Predictor(target, "cpu", 1)(images)
    with torch.no_grad():
        raw = load(mixed, folded=False)(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255)
    standard_says = raw[:, :10].argmax(dim=1).numpy()
    by_robust = answer.dummy_mass > 0.5
    assert set(np.unique(answer.dummy_mass)) == {0.0, 1.0}
    assert (answer.label == standard_says)[~by_robust].all()
    assert (answer.label != standard_says)[by_robust].all()
    entries = answer.to_json(read_spec(mixed), 1)
    assert [e["answered_by"] for e in entries] == ["robust" if r else "standard" for r in by_robust]
    prediction = Predictor(target, "cpu", 1).predict(images[int(by_robust.argmax())])
    assert prediction.answered_by == "robust"
    assert "Two towers" in target.with_suffix(".md").read_text()


@pytest.mark.extended
def test_half_precision_halves_both_towers(mixed: Path) -> None:
    target = mixed.with_name("half.onnx")
    assert run(["export", str(mixed), "--out", str(target), "--precision", "float16"]) == 0
    # The checkpoint holds the same weights in float32.
    assert target.stat().st_size < 0.6 * mixed.stat().st_size


def test_inspect_names_the_towers(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(mixed)]) == 0
    said = capsys.readouterr().out
    spec = read_spec(mixed)
    assert spec.towers is not None
    for tower in spec.towers:
        assert tower.weights_digest in said
    assert "overrules at a lead of" in said


def test_the_command_prints_what_it_fitted(
    standard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "model.safetensors"
    arguments = ["mix", str(standard), ROBUST, "--out", str(target), "--give-up", "10", "--json"]
    assert run(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    spec = read_spec(target)
    assert isinstance(spec.fold, Switch)
    assert document["switch"] == spec.fold.model_dump(mode="json")
    assert document["floor"] >= document["robust_tower"]["worst_case"] - 0.10 - 1e-9
    recorded: Any = spec.training["mixture"]
    assert recorded["asked"] == "--give-up 10"
    assert recorded["val_floor"] == document["floor"]
    assert str(tmp_path) not in spec.to_json()
    assert spec.command == f"ducat mix {standard.parent.name} digits-small.safetensors --give-up 10"
    # An hour of evaluation may be inside: nothing is written over.
    assert run(arguments) == 2
    assert "exists already" in capsys.readouterr().out


def test_it_is_fitted_on_val_and_on_nothing_else(
    standard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(asked: Question, _file: Path, _output: Output) -> Any:
        seen.append(asked.images)
        raise UsageError("seen enough")

    monkeypatch.setattr(mixing, "answers_of", watched)
    with pytest.raises(UsageError, match="seen enough"):
        mix(Towers(standard, ROBUST), out=tmp_path / "m.safetensors", output=QUIET)
    val = load_dataset("digits", seed=0).val.images
    assert seen[0].images.numpy().transpose(0, 2, 3, 1).tolist() == val.tolist()


def test_the_curve_is_drawn_before_one_chooses(
    standard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mixing, "_ATTACKED_SETTINGS", 2)
    monkeypatch.setattr(mixing, "_ATTACKED_IMAGES", 20)
    monkeypatch.setattr(mixing, "suite", lambda _name, _target: [PGD(steps=2)])
    monkeypatch.setattr("training.evaluation.floor._ATTACKS", ("apgd-ce",))
    assert run(["mix", str(standard), ROBUST, "--curve", str(tmp_path / "dial.png"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "dial.json").read_text())
    assert written["dial"] == document["dial"]
    assert len(written["attacked"]) == min(2, len(written["dial"])) > 0
    for point in written["attacked"]:
        assert point["floor"] <= point["worst_case"] <= point["clean"]
    assert (tmp_path / "dial.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "dial.svg").read_text().startswith("<?xml")
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["answers.safetensors"]
    assert run(["mix", str(standard), ROBUST, "--curve", str(tmp_path / "other"), "--give-up", "2"]) == 2
    assert "chooses none" in capsys.readouterr().err


class _Counting(APGD):
    """Counts the batches that it attacks."""

    batches = 0

    def __call__(self, *arguments: Any, **named: Any) -> torch.Tensor:
        type(self).batches += 1
        return super().__call__(*arguments, **named)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> type[_Counting]:
    """Two searches that count how often they are asked."""
    searches = {"first": _Counting(margin, 2), "second": _Counting(margin, 3)}
    monkeypatch.setattr("training.mixture.answers.SEARCHES", searches)
    _Counting.batches = 0
    return _Counting


def test_another_setting_takes_no_attack(standard: Path, tmp_path: Path, counting: type[_Counting]) -> None:
    towers = Towers(standard, ROBUST, max_examples=120)
    first = mix(towers, out=tmp_path / "first.safetensors", give_up=5, output=QUIET)
    assert counting.batches == 2
    again = mix(towers, out=tmp_path / "again.safetensors", give_up=30, output=QUIET)
    assert counting.batches == 2
    for name in ("labels", "standard", "robust", "attacked"):
        assert torch.equal(getattr(first.answers, name), getattr(again.answers, name))
    assert again.setting.clean >= first.setting.clean  # the dial was turned, by the same answers


@pytest.mark.parametrize("changed", ["seed", "images", "robust tower", "batch size", "damaged"])
def test_answers_to_another_question_are_asked_again(
    standard: Path,
    tmp_path: Path,
    counting: type[_Counting],
    changed: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    towers = Towers(standard, ROBUST, max_examples=120)
    mix(towers, out=tmp_path / "first.safetensors", output=QUIET)
    if changed == "damaged":
        (tmp_path / "answers.safetensors").write_bytes(b"of something else")
    others = {
        "seed": replace(towers, seed=1),  # which chooses other images, too
        "images": replace(towers, max_examples=121),
        "robust tower": replace(towers, robust=standard, force=True),
        "batch size": replace(towers, batch_size=200),
        "damaged": towers,
    }
    mix(others[changed], out=tmp_path / "second.safetensors", give_up=100)
    assert counting.batches == 4
    said = capsys.readouterr().err
    assert "the towers are asked again" in said
    assert changed in said


def test_an_interrupted_fit_keeps_the_attacks_that_are_through(
    standard: Path, tmp_path: Path, counting: type[_Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    towers, searches = Towers(standard, ROBUST, max_examples=120), dict(answers.SEARCHES)

    class Interrupted(_Counting):
        def __call__(self, *_arguments: Any, **_named: Any) -> torch.Tensor:
            raise KeyboardInterrupt

    monkeypatch.setitem(answers.SEARCHES, "second", Interrupted(margin, 3))
    with pytest.raises(KeyboardInterrupt):
        mix(towers, out=tmp_path / "model.safetensors", output=QUIET)
    assert counting.batches == 1
    monkeypatch.setitem(answers.SEARCHES, "second", searches["second"])
    mix(towers, out=tmp_path / "model.safetensors", output=QUIET)
    assert counting.batches == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": tuple("abcdefghij")}, "other classes"),
        ({"labels": tuple("1023456789")}, "another order"),
        ({"image_size": (16, 16)}, "take other images: 16x16"),
        ({"num_classes": 3, "labels": tuple("012")}, "other classes: 3"),
    ],
)
def test_towers_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    other = tower_checkpoint(tmp_path / "other.safetensors", **changes)
    with pytest.raises(UsageError, match=message):
        mix(Towers(other, ROBUST), out=tmp_path / "m.safetensors", output=QUIET)
    assert not (tmp_path / "m.safetensors").exists()


def test_two_classes_are_too_few(tmp_path: Path) -> None:
    two = tower_checkpoint(tmp_path / "two.safetensors", num_classes=2, labels=("a", "b"))
    with pytest.raises(UsageError, match="Two classes are too few"):
        mix(Towers(two, two), out=tmp_path / "m.safetensors", output=QUIET)


def test_a_mixture_of_a_mixture(mixed: Path, standard: Path, tmp_path: Path) -> None:
    for towers in (Towers(mixed, ROBUST), Towers(standard, mixed)):
        with pytest.raises(UsageError, match="two-tower model itself"):
            mix(towers, out=tmp_path / "m.safetensors", output=QUIET)


def test_a_robust_tower_that_is_not(
    standard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = tower_checkpoint(
        tmp_path / "weak.safetensors", threat_model=read_spec(model_path(ROBUST, "safetensors")).threat_model
    )
    target = tmp_path / "m.safetensors"
    arguments = ["mix", str(standard), str(weak), "--out", str(target)]
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert "no val image right under attack" in error
    assert "--force" in error
    assert not target.exists()


def test_a_tower_that_was_changed(standard: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.safetensors"
    data = bytearray(standard.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(data)
    with pytest.raises(VerificationError, match="do not match their digest"):
        mix(Towers(changed, ROBUST), out=tmp_path / "m.safetensors", output=QUIET)


def test_bad_numbers_and_too_few_images(standard: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.safetensors"
    with pytest.raises(UsageError, match="99 val images are too few"):
        mix(Towers(standard, ROBUST, max_examples=99), out=target, output=QUIET)
    with pytest.raises(UsageError, match="not both"):
        mix(Towers(standard, ROBUST), out=target, give_up=1, clean=0.9, output=QUIET)
    with pytest.raises(UsageError, match=r"No setting of the switch meets --clean 1\.01"):
        mix(Towers(standard, ROBUST), out=target, clean=1.01, output=QUIET)
    assert run(["mix", str(standard), ROBUST, "--give-up", "101"]) == 2
    for threshold in (0, 1, -0.1):
        with pytest.raises(ValueError, match="threshold"):
            Switch(scale=1, power=1, shift=0, threshold=threshold)


def test_a_forged_spec_with_a_switch_and_no_towers(tmp_path: Path, mixed: Path) -> None:
    spec, weights = read_checkpoint(mixed)
    file = forged(tmp_path / "forged.safetensors", weights, fold=spec.fold)
    with pytest.raises(VerificationError, match="fold of two towers"):
        read_spec(file)
    nested = spec.model_copy(update={"towers": (spec, spec)})
    with pytest.raises(VerificationError, match="towers of its own"):
        ModelSpec.from_json(nested.to_json(), "nested")
