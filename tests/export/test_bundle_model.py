"""The maintainer's script that puts a model into the package."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from ducat_serve import bundled
from ducat_serve.bundled import Index, bundled_models, model_path
from ducat_serve.checkpoint import read_spec, weights_digest
from ducat_serve.predictor import Predictor
from ducat_serve.report import AttackResult, RobustnessReport
from tests.support.checkpoints import Weights, forged, untrained
from training.attacks.base import TargetModel
from training.evaluation.stages import suite

# Scripts in benchmarks/ are no package.
main = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/bundle_model.py"))["main"]
STANDARD = tuple(attack.name for attack in suite("standard", TargetModel("none", 2)))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package without models."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "index.json").write_text(Index(models=()).to_json())
    monkeypatch.setattr(bundled, "FOLDER", folder)
    return folder


@pytest.fixture(scope="module")
def weights() -> Weights:
    return untrained()


def run_with(
    folder: Path, weights: Weights, training: dict[str, object] | None = None, **changes: Any
) -> str:
    """A checkpoint with a report of the standard suite, but for ``changes``."""
    names = changes.pop("attacks", STANDARD)
    attack = AttackResult(
        name="", settings={}, examples=400, accuracy=0.5, worst_case_accuracy=0.5, seconds=1
    )
    report = RobustnessReport(
        weights_digest=weights_digest(weights),
        dataset="Cats (JPEG)",
        split="test",
        examples=400,
        norm="linf",
        eps=0.1,
        seed=0,
        clean_accuracy=0.8,
        clean_interval=(0.75, 0.85),
        worst_case_accuracy=0.5,
        worst_case_interval=(0.45, 0.55),
        per_class=(),
        attacks=tuple(attack.model_copy(update={"name": name}) for name in names),
        versions={},
    ).model_copy(update=changes)
    folder.mkdir(exist_ok=True)
    forged(folder / "model.safetensors", weights, robustness=report, training=training or {})
    return str(folder)


def test_bundles_checkpoint_export_card_and_index_and_replaces_them(
    package: Path, tmp_path: Path, weights: Weights
) -> None:
    origin = ["--command", "ducat train --dataset cats", "--revision", "a1b2c3"]
    assert main([run_with(tmp_path / "run", weights, {"data_digest": "d1"}), "cats-small", *origin]) == 0
    assert {path.name for path in package.iterdir()} == {
        "index.json",
        *(f"cats-small.{kind}" for kind in ("safetensors", "onnx", "md")),
    }
    entry = bundled_models()["cats-small"]
    assert (entry.dataset, entry.data_digest, entry.parameters) == ("Cats (JPEG)", "d1", 700_434)
    assert (entry.command, entry.git_revision) == ("ducat train --dataset cats", "a1b2c3")
    spec = read_spec(model_path("cats-small", "safetensors"))
    assert (spec.command, spec.git_revision) == (entry.command, entry.git_revision)
    assert Predictor("cats-small", "cpu").spec == spec
    assert "`ducat train --dataset cats`" in (package / "cats-small.md").read_text()

    assert main([run_with(tmp_path / "run", weights, clean_accuracy=0.9), "cats-small"]) == 0
    replaced = bundled_models()["cats-small"]
    assert (replaced.clean_accuracy, replaced.command) == (0.9, None)
    assert not set(replaced.sha256.values()) & set(entry.sha256.values())
    assert model_path("cats-small", "onnx").is_file()


def test_the_index_is_sorted_by_name() -> None:
    entry = next(iter(bundled_models().values()))
    models = tuple(entry.model_copy(update={"name": name}) for name in ("c", "a", "b"))
    written = Index.model_validate_json(Index(models=models).to_json())
    assert [model.name for model in written.models] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attacks": STANDARD[1:]}, f"without {STANDARD[0]}"),
        ({"split": "val"}, "400 val images"),
        ({"examples": 100}, "100 test images"),
        ({"eps": 0.05}, "not of linf 0.1"),
    ],
)
def test_a_report_that_says_too_little_is_refused(
    package: Path,
    tmp_path: Path,
    weights: Weights,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    words: str,
) -> None:
    assert main([run_with(tmp_path / "run", weights, **changes), "cats"]) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert "ducat evaluate" in shown
    assert [path.name for path in package.iterdir()] == ["index.json"]


def test_an_origin_that_is_recorded_is_not_replaced(
    package: Path, tmp_path: Path, weights: Weights, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with(tmp_path / "run", weights, {"command": "ducat train"})
    assert main([run, "cats", "--command", "another"]) == 2
    assert "records another command: ducat train" in capsys.readouterr().err
    assert [path.name for path in package.iterdir()] == ["index.json"]


def test_a_name_that_cannot_be_typed_is_refused(
    package: Path, tmp_path: Path, weights: Weights, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([run_with(tmp_path / "run", weights), "../Cats"]) == 2
    assert "../Cats" in capsys.readouterr().err
    assert [path.name for path in package.iterdir()] == ["index.json"]
