"""`ducat compare` and the model card: what was measured, side by side and in words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from PIL import Image

from ducat_serve.bundled import model_path
from ducat_serve.checkpoint import read_checkpoint, read_spec, write_checkpoint
from ducat_serve.cli.main import run
from ducat_serve.deployed import load
from ducat_serve.report import RobustnessReport, SanityCheck
from ducat_serve.spec import ModelSpec
from export.model_card import model_card
from training.attacks.base import TargetModel
from training.evaluation.comparison import (
    OF_SOME_MODELS,
    ON_DOUBT,
    Candidate,
    differences,
    losses,
    pareto_front,
    to_json,
)
from training.evaluation.plot import plot_comparison
from training.evaluation.stages import ATTACKS, on_doubt, suite


def report(spec: ModelSpec, clean: float, worst: float, **more: Any) -> RobustnessReport:
    values = {
        "weights_digest": spec.weights_digest,
        "dataset": "digits",
        "split": "test",
        "examples": 100,
        "norm": "linf",
        "eps": 0.1,
        "seed": 0,
        "clean_accuracy": clean,
        "worst_case_accuracy": worst,
        "worst_case_interval": (max(0.0, worst - 0.05), min(1.0, worst + 0.05)),
        "per_class": (),
        "attacks": (),
        "versions": {},
        **more,
    }
    return RobustnessReport.model_validate(values)


def candidate(spec: ModelSpec, name: str, clean: float, worst: float, **more: Any) -> Candidate:
    return Candidate(name, Path(name), report(spec, clean, worst, **more), spec.weights_digest, 1000, 4000)


@pytest.fixture(scope="module")
def spec(checkpoint: Path) -> ModelSpec:
    return read_spec(checkpoint)


def test_a_model_whose_report_doubts_itself_is_not_on_the_front(spec: ModelSpec) -> None:
    failed = SanityCheck(name="n", expectation="e", passed=False, figures={})
    honest = candidate(spec, "honest", 0.9, 0.4)
    for doubt in ({"sanity": (failed,)}, {"doubts": ("random answers: each time",)}):
        masked = candidate(spec, "masked", 0.9, 0.7, **doubt)
        assert pareto_front([honest, masked]) == [honest]


def test_an_older_report_of_an_exported_file_does_not_say_that_images_had_8_bits(spec: ModelSpec) -> None:
    old = candidate(spec, "old", 0.9, 0.4, artefact="onnx")
    new = candidate(spec, "new", 0.9, 0.4, artefact="onnx", lattice="8bit", examples=200)
    assert old.report is not None
    assert new.report is not None
    assert losses(old.report, new.report) == []
    assert differences([old, new]) == ["number of images"]


def test_reports_of_other_images_are_not_comparable(spec: ModelSpec) -> None:
    """Two folders of one name are not one data set."""
    one, other = (candidate(spec, name, 0.9, 0.4, data_digest=name) for name in ("a", "b"))
    assert differences([one, other]) == ["images"]
    assert differences([one, one, candidate(spec, "older", 0.8, 0.3)]) == []


def test_the_pareto_front_is_what_nobody_beats(spec: ModelSpec) -> None:
    accuracies = {
        "a": (0.9, 0.3),
        "b": (0.8, 0.5),
        "c": (0.8, 0.4),
        "d": (0.7, 0.5),
        "e": (0.6, 0.6),
        "f": (0.6, 0.6),
    }
    candidates = [candidate(spec, name, *pair) for name, pair in accuracies.items()]
    unmeasured = Candidate("g", Path("g"), None, spec.weights_digest, 1, 1)
    assert [c.name for c in pareto_front([*candidates, unmeasured])] == ["a", "b", "e", "f"]


def test_models_that_were_not_measured_alike_have_no_front(spec: ModelSpec) -> None:
    candidates = [candidate(spec, "a", 0.9, 0.3), candidate(spec, "b", 0.8, 0.4, eps=0.2)]
    assert pareto_front(candidates) == []
    documents = to_json(candidates)
    assert [document["pareto"] for document in documents] == [False, False]
    assert [document["threat_model"] for document in documents] == [
        {"norm": "linf", "eps": 0.1},
        {"norm": "linf", "eps": 0.2},
    ]
    assert [(d["dataset"], d["split"], d["examples"]) for d in documents] == [("digits", "test", 100)] * 2


def test_attacks_that_some_models_cannot_be_given_are_those_that_say_so() -> None:
    least = TargetModel("none", 10)  # no dummies, no surrogate
    assert {name for name, attack in ATTACKS.items() if not attack.applies(least)} == OF_SOME_MODELS
    assert {attack.name for attack in on_doubt("standard", least)} == ON_DOUBT


def test_a_report_on_test_images_may_replace_one_on_val_images(spec: ModelSpec) -> None:
    val, test = report(spec, 0.9, 0.3, split="val"), report(spec, 0.9, 0.3, examples=50)
    assert losses(val, test) == []
    assert losses(test, val) == ["other data"]


def test_what_says_less_is_not_stored_in_the_place_of_more(spec: ModelSpec) -> None:
    """A coarser lattice, or fewer attacks of the same kind."""

    def ran(*names: str) -> RobustnessReport:
        counts = {"examples": 10, "accuracy": 0.5, "worst_case_accuracy": 0.5, "gradient_steps": 0}
        counts |= {"forward_passes": 10, "seconds": 1}
        return report(
            spec, 0.8, 0.4, artefact="onnx", attacks=[{"name": n, "settings": {}, **counts} for n in names]
        )

    whole = report(spec, 0.8, 0.4)
    assert losses(whole, whole.model_copy(update={"lattice": "8bit"})) == [
        "attacks that could only make images of 8 bits"
    ]
    assert losses(whole.model_copy(update={"lattice": "8bit"}), whole) == []
    assert losses(ran("square", "transfer"), ran("square")) == ["weaker attacks"]
    assert losses(ran("square"), ran("square", "transfer")) == []


def test_what_was_measured_differently_is_named(spec: ModelSpec) -> None:
    a = candidate(spec, "a", 0.9, 0.3)
    assert differences([a, candidate(spec, "b", 0.8, 0.4)]) == []
    other = candidate(spec, "c", 0.8, 0.4, examples=50, eps=0.2, dataset="cifar10", seed=1)
    scores = candidate(
        spec, "d", 0.8, 0.4, artefact="onnx", legacy_attacks=("apgd-ce",), legacy_2c_accuracy=0.5
    )
    assert differences([a, scores]) == ["knowledge (white-box or scores only)", "lattice"]
    run_by = {"settings": {}, "examples": 9, "accuracy": 0.5, "worst_case_accuracy": 0.5, "seconds": 1}
    more = candidate(spec, "e", 0.8, 0.4, attacks=[{"name": n, **run_by} for n in ("apgd-lse", "transfer")])
    assert differences([a, more]) == []  # what a model cannot be given makes no difference
    assert differences([a, candidate(spec, "f", 0.8, 0.4, attacks=[{"name": "square", **run_by}])]) == [
        "attacks"
    ]
    twice = [
        candidate(
            spec, str(steps), 0.8, 0.4, attacks=[{"name": "pgd", **run_by, "settings": {"steps": steps}}]
        )
        for steps in (20, 40)
    ]
    assert differences(twice) == ["settings of attacks"]
    assert differences([a, other]) == ["data", "number of images", "threat model", "seed (which images)"]


def test_the_plot_is_two_pictures_with_the_same_bytes_every_time(spec: ModelSpec, tmp_path: Path) -> None:
    candidates = [
        candidate(spec, "one", 0.9, 0.3, legacy_2c_accuracy=0.8),
        candidate(spec, "two", 0.8, 0.5),
    ]
    first = [path.read_bytes() for path in plot_comparison(candidates, tmp_path / "a.b")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.b.png", "a.b.svg"]
    assert first == [path.read_bytes() for path in plot_comparison(candidates, tmp_path / "again")]
    with Image.open(tmp_path / "a.b.png") as picture:
        assert picture.size == (1120, 800)
        colours = picture.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert {(0x1B, 0x6C, 0xA8), (0xC8, 0x55, 0x3D)} <= {colour for _, colour in colours}
    assert b"<svg" in first[1]
    with pytest.raises(ValueError, match="no model"):
        plot_comparison([], tmp_path / "none")


def test_models_that_were_not_measured_alike_are_drawn_without_a_front(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fronts: list[object] = []
    monkeypatch.setattr(Axes, "step", lambda *_, **__: fronts.append("a front"))
    one, other = candidate(spec, "one", 0.9, 0.3), candidate(spec, "other", 0.8, 0.4, eps=0.3)
    assert all(path.is_file() for path in plot_comparison([one, other], tmp_path / "x"))
    assert fronts == []
    plot_comparison([one], tmp_path / "y")
    assert fronts == ["a front"]


@pytest.fixture(scope="module")
def measured(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose checkpoint carries a report, and its export."""
    folder = tmp_path_factory.mktemp("measured") / "run"
    shutil.copytree(run_folder, folder)
    found, tensors = read_checkpoint(folder / "model.safetensors")
    doubt = SanityCheck(name="n", expectation="noise is weaker", passed=False, figures={"noise": 0.1})
    claims = report(found, 0.62, 0.17, legacy_2c_accuracy=0.2, sanity=(doubt,))
    write_checkpoint(folder / "model.safetensors", tensors, found.model_copy(update={"robustness": claims}))
    assert run(["export", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("worst", [0.0, 1.0])
def test_accuracies_of_none_and_all_can_be_drawn(spec: ModelSpec, worst: float, tmp_path: Path) -> None:
    interval = (0.0, 0.04) if worst == 0 else (0.96, 1.0)
    for examples in (13, 25, 100, 500, 1000):
        extreme = candidate(spec, "x", worst, worst, examples=examples, worst_case_interval=interval)
        assert plot_comparison([extreme], tmp_path / "x")


def test_the_plot_draws_the_intervals_that_were_measured(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is made up for an old report, which has no interval of its clean accuracy."""
    drawn: list[Any] = []
    monkeypatch.setattr(Axes, "errorbar", lambda _axes, _x, _y, *, xerr, **_more: drawn.append(xerr))
    old = candidate(spec, "old", 0.8, 0.4)
    new = candidate(spec, "new", 0.8, 0.4, clean_interval=(0.5, 0.9))
    plot_comparison([old, new], tmp_path / "x")
    assert drawn[0] is None
    assert drawn[1] == [[pytest.approx(30)], [pytest.approx(10)]]


def test_compare_on_the_command_line(
    measured: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [str(measured), str(measured / "model.onnx"), str(run_folder)]
    capsys.readouterr()
    assert run(["compare", *models, "--out", str(tmp_path / "plot"), "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    first, exported, unmeasured = document["models"]
    assert (first["clean_accuracy"], first["worst_case_accuracy"]) == (0.62, 0.17)
    assert first["parameters"] == sum(p.numel() for p in load(measured).parameters())
    assert first["bytes"] == (measured / "model.safetensors").stat().st_size
    assert exported["parameters"] == first["parameters"]
    assert exported["worst_case_accuracy"] == 0.17
    assert first["gradient_masking_suspected"] is True
    assert unmeasured["worst_case_accuracy"] is None
    assert document["plots"] == [str(tmp_path / "plot.png"), str(tmp_path / "plot.svg")]
    assert all(Path(file).is_file() for file in document["plots"])
    assert "robustness not measured; run `ducat evaluate" in captured.err
    assert "not a robustness claim" in captured.err
    assert "gradient masking suspected" in captured.err


def test_a_folder_of_the_name_of_the_plot_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "compare").mkdir()
    assert run(["compare", "digits-small"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"compare", "compare.png", "compare.svg"}


@pytest.mark.parametrize("given", ["plots/v1.2", "plots/v1.2.png", "plots/v1.2.svg"])
def test_the_suffix_of_a_picture_is_not_written_twice(given: str, tmp_path: Path) -> None:
    assert run(["compare", "digits-small", "--out", str(tmp_path / given)]) == 0
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"v1.2.png", "v1.2.svg"}


def test_a_legacy_accuracy_of_none_has_its_footnote_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, tensors = read_checkpoint(model_path("digits-small", "safetensors"))
    claims = report(found, 0.62, 0.17, legacy_2c_accuracy=0.0)
    write_checkpoint(tmp_path / "m.safetensors", tensors, found.model_copy(update={"robustness": claims}))
    assert run(["compare", str(tmp_path / "m.safetensors"), "--out", str(tmp_path / "plot")]) == 0
    said = capsys.readouterr()
    assert "legacy*" in said.out
    assert "not a robustness claim" in said.err


def test_a_floor_has_a_column_where_a_model_has_one(
    run_folder: Path, measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, tensors = read_checkpoint(run_folder / "model.safetensors")
    floor = {"accuracy": 0.123, "interval": (0.1, 0.2), "attacks": (), "found_by_others": 0}
    claims = report(found, 0.62, 0.17, floor=floor)
    write_checkpoint(tmp_path / "two.safetensors", tensors, found.model_copy(update={"robustness": claims}))
    plot = ["--out", str(tmp_path / "plot")]
    assert run(["compare", str(measured), *plot]) == 0
    assert "floor" not in capsys.readouterr().out
    assert run(["compare", str(measured), str(tmp_path / "two.safetensors"), *plot]) == 0
    table = capsys.readouterr().out
    assert "floor" in table
    assert "12.3%" in table
    floors = [
        d["floor_accuracy"]
        for d in to_json([candidate(found, "one", 0.9, 0.3), candidate(found, "two", 0.9, 0.3, floor=floor)])
    ]
    assert floors == [None, 0.123]


def test_compare_of_what_was_not_measured_or_is_not_there(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", str(run_folder), "--out", str(tmp_path / "plot")]) == 0
    assert "there is no plot" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert run(["compare", str(run_folder), str(tmp_path / "nowhere.safetensors")]) == 4
    assert run(["compare"]) == 2


def test_the_model_card_says_what_was_measured(measured: Path) -> None:
    card = (measured / "model.md").read_text()
    for words in (
        "| clean | 62.0% |",
        "**17.0%**",
        "non-adaptive, not a robustness claim | 20.0% |",
        "**Warning.** A check of the measurement failed (n). It expects: noise is weaker. That was not so.",
        "gradient masking suspected",
        "linf 0.1 on 100 test images of digits",
        "shorter side resized",
        "DUCAT as published",
    ):
        assert words in card
    assert str(measured.parent) not in card


def test_the_model_card_says_where_nothing_was_measured(spec: ModelSpec) -> None:
    assert "**Robustness not measured.**" in model_card(
        spec.model_copy(update={"robustness": None}), "model.onnx"
    )


def test_inspect_and_the_service_pass_on_a_failed_check(
    measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(measured / "model.onnx")]) == 0
    assert "gradient masking suspected" in capsys.readouterr().out


def test_a_screening_is_named_in_the_table_the_card_and_under_json(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copy(checkpoint, tmp_path / "model.safetensors"))
    assert run(["evaluate", str(path), "--max-examples", "20"]) == 0
    shown = capsys.readouterr()
    assert "screening, not a worst case" in shown.out
    assert "This is a screening" in shown.err.replace("\n", " ")
    measured = read_spec(path)
    assert "**screening, not a worst case**" in model_card(measured, "model.onnx")
    assert measured.robustness is not None
    assert "; screening, not a worst case" in measured.robustness.summary()
    assert run(["compare", str(path), "--out", str(tmp_path / "plot")]) == 0
    shown = capsys.readouterr()
    assert "screening" in shown.out
    assert "--suite standard" in shown.err
    assert (
        to_json([Candidate("a", path, measured.robustness, measured.weights_digest, 1, 1)])[0]["screening"]
        is True
    )


def test_of_the_suites_only_the_quick_one_is_a_screening(spec: ModelSpec) -> None:
    for target in (TargetModel("none", 10), TargetModel("max", 3), TargetModel("lse", 10)):
        for name, expected in (("quick", True), ("standard", False), ("full", False)):
            attacks = [
                {
                    "name": a.name,
                    "settings": {},
                    "examples": 1,
                    "accuracy": 1,
                    "worst_case_accuracy": 1,
                    "seconds": 0,
                }
                for a in suite(name, target)
            ]
            assert report(spec, 0.9, 0.3, attacks=attacks).is_screening is expected, (name, target)


def test_a_model_of_others_stands_beside_ours_by_its_report(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = report(spec, 0.7, 0.3, weights_digest="f" * 64)
    Path("nets.make.robustness.json").write_text(theirs.model_dump_json())
    assert run(["compare", "digits-small", "nets.make.robustness.json", "--json"]) == 0
    ours, other = json.loads(capsys.readouterr().out)["models"]
    assert ours["name"] == "digits-small"
    assert (other["name"], other["worst_case_accuracy"]) == ("nets.make", 0.3)
    assert (other["weights_digest"], other["parameters"], other["bytes"]) == ("f" * 64, None, None)
    assert run(["compare", "nets.make.robustness.json", "nowhere.json"]) == 4
    Path("settings.json").write_text("{}")
    assert run(["compare", "settings.json"]) == 4
