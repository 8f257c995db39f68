"""The last lines of `ducat train`: where dummies have cost robustness they name the recipe that we recommend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ducat_serve.cli.main import run
from training.data import Dataset
from training.data.cache import Split
from training.run.metrics import RunSummary


def closing_lines(
    arguments: list[str],
    before: float | None,
    now: float,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """What a run prints at its end if PGD accuracy on val was ``before`` without dummies and is ``now``."""
    import training.run.start

    split = Split(np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1]))
    data = Dataset("two", ("a", "b"), split, split, split, "digest")
    summary = RunSummary("model.safetensors", "two", 5, 5, 0.9, now, before)
    monkeypatch.setattr(training.run.start, "load_run_data", lambda *_: data)
    monkeypatch.setattr(training.run.start, "train", lambda *_, **__: summary)
    small = ["--network", "resnet-small", "--batch-size", "2", "--device", "cpu", "--out", str(folder)]
    assert run(["train", *small, *arguments]) == 0
    printed = capsys.readouterr()
    return " ".join((printed.out + printed.err).split())


def test_it_names_the_recommended_recipe_where_dummies_have_cost_robustness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = closing_lines(["--dataset", "cifar10"], 0.40, 0.35, tmp_path, monkeypatch, capsys)
    assert told.endswith("ducat train --dataset cifar10 --recipe cifar10-hours")
    own = ["--dataset", f"folder:{tmp_path}/my images"]
    told = closing_lines(own, 0.40, 0.35, tmp_path, monkeypatch, capsys)
    assert told.endswith(f"ducat train --dataset 'folder:{tmp_path}/my images' --recipe folder-hours")


@pytest.mark.parametrize(("steps", "words"), [("1", "PGD-10 40.0%"), ("12", "PGD-12 40.0%")])
def test_it_says_of_how_many_steps_pgd_was_on_val(
    steps: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those of validation, which are more than those of fast training."""
    asked = ["--dataset", "cifar10", "--ducat", "off", "--attack-steps", steps]
    assert words in closing_lines(asked, None, 0.40, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("arguments", "before", "now"),
    [
        (["--dataset", "cifar10"], 0.40, 0.39),  # no more than noise
        (["--dataset", "cifar10", "--ducat", "off"], None, 0.40),
        (["--dataset", "cifar10", "--norm", "l2"], 0.40, 0.35),  # its method is made for linf
        (["--dataset", "digits"], 0.40, 0.35),  # there is none
    ],
)
def test_it_names_none_elsewhere(
    arguments: list[str],
    before: float | None,
    now: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = closing_lines(arguments, before, now, tmp_path, monkeypatch, capsys)
    assert told.endswith(f"Next: ducat evaluate {tmp_path}")
