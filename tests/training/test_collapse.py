"""Collapsed runs are ended with the reason and the settings to change; healthy ones are not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ducat_serve.checkpoint import read_spec
from ducat_serve.cli.main import run
from tests.support.training_runs import epoch_row
from training.collapse import CollapseGuard, collapsed, has_collapsed, has_lost_one_step, is_to_be_said
from training.config import TrainConfig
from training.resolve import resolve
from training.run.folder import RunFolder
from training.run.metrics import COLLAPSED, EpochRow
from training.validation import ValidationResult

SIZES = (50, 50, 50, 50)  # chance is 25 %, its noise 6 points


def config(**settings: Any) -> TrainConfig:
    return resolve("digits", {"epochs": 30, "ducat": "off", **settings})


def judged(
    settings: TrainConfig,
    epochs: Sequence[tuple[float, float]],
    classes: Sequence[Sequence[float]] = (),
    steps: int = 10,
    **row: Any,
) -> list[EpochRow]:
    """The rows of a run whose epochs reach so much (clean, PGD), up to the one that ends it."""
    rows: list[EpochRow] = []
    guard = CollapseGuard(settings, steps)
    for epoch, (clean, pgd) in enumerate(epochs, 1):
        by_class = tuple(classes[epoch - 1]) if classes else (clean,) * 4
        result = ValidationResult(clean, pgd, class_accuracies=by_class, class_sizes=SIZES)
        lost = " ".join(map(str, result.lost_classes))
        new = epoch_row(epoch, val_clean_accuracy=clean, val_pgd_accuracy=pgd, **row)
        new = replace(new, val_lost_classes=lost)
        rows.append(replace(new, warning=guard.warning(rows, new, result)))
        if has_collapsed(rows):
            break
    return rows


GOOD, CHANCE, BRITTLE = (0.6, 0.3), (0.25, 0.2), (0.9, 0.0)


@pytest.mark.parametrize(
    ("settings", "epochs", "ends"),
    [
        ({}, [GOOD, GOOD, CHANCE, CHANCE, CHANCE, GOOD], 5),  # it falls to chance
        ({}, [GOOD, CHANCE, CHANCE, GOOD, CHANCE, CHANCE, GOOD], None),  # and comes back
        ({}, [CHANCE] * 9 + [GOOD], None),  # fresh weights take their time
        ({}, [CHANCE] * 12, 10),
        ({"initial_weights": "abc"}, [CHANCE] * 12, 3),  # start weights do not
        ({"initial_weights": "abc"}, [BRITTLE] * 5, 3),
        ({}, [GOOD, BRITTLE, BRITTLE, BRITTLE, GOOD], 4),
        ({}, [BRITTLE] * 9 + [GOOD], None),  # as digits at eps 0.2 for an epoch or three
        ({}, [BRITTLE] * 12, 10),
        ({}, [BRITTLE, BRITTLE, GOOD, BRITTLE, BRITTLE, GOOD], None),
        (
            {"eps_ramp": 5, "initial_weights": "abc"},
            [BRITTLE] * 6 + [GOOD],
            None,
        ),  # two epochs after the ramp
        ({"eps_ramp": 5, "initial_weights": "abc"}, [BRITTLE] * 9, 8),
        ({"method": "standard"}, [BRITTLE] * 30, None),  # which promises nothing else
        (
            {"ema_decay": 0.999},
            [CHANCE] * 30,
            None,
        ),  # 300 epochs of 10 steps until the average is that of the run
        ({"ema_decay": 0.75, "initial_weights": "abc"}, [CHANCE] * 9, 5),
    ],
)
def test_what_ends_a_run(
    settings: dict[str, Any], epochs: list[tuple[float, float]], ends: int | None
) -> None:
    rows = judged(config(**settings), epochs)
    assert (rows[-1].epoch if has_collapsed(rows) else None) == ends


@pytest.mark.parametrize(
    ("settings", "epochs", "said"),
    [
        ({}, [CHANCE, CHANCE, GOOD], []),  # as fresh weights often begin
        ({}, [CHANCE] * 5, [3]),
        ({"epochs": 2}, [CHANCE] * 2, [2]),
        ({}, [GOOD, CHANCE, CHANCE, GOOD, CHANCE], [2, 5]),
        ({}, [CHANCE, BRITTLE, BRITTLE], [2]),  # another sign
        ({"initial_weights": "0" * 64}, [CHANCE, CHANCE, GOOD], [1]),
    ],
)
def test_when_a_sign_is_said(
    settings: dict[str, Any], epochs: list[tuple[float, float]], said: list[int]
) -> None:
    run_of = config(**settings)
    rows = judged(run_of, epochs)
    assert [n for n in range(1, len(rows) + 1) if is_to_be_said(rows[:n], run_of)] == said


def test_few_images_end_no_run_that_is_better_than_chance() -> None:
    """6 of 10 images of two classes: noise alone could do it, and so could success."""
    guard = CollapseGuard(config(initial_weights="abc"), 10)
    result = ValidationResult(0.6, 0.5, class_accuracies=(0.6, 0.6), class_sizes=(5, 5))
    rows = [epoch_row(epoch, val_clean_accuracy=0.6) for epoch in range(1, 9)]
    assert guard.warning(rows, epoch_row(9, val_clean_accuracy=0.6), result) == ""


@pytest.mark.parametrize(
    ("by_class", "sign"),
    [
        ((1.0, 0.0), "at-chance"),  # always the common class
        ((0.8, 0.85), ""),  # less accurate than that, and it tells the classes apart
    ],
)
@pytest.mark.parametrize("sizes", [(900, 100), (18, 2)])
def test_a_model_that_finds_the_rare_class_is_not_at_chance(
    by_class: tuple[float, float], sign: str, sizes: tuple[int, int]
) -> None:
    clean = sum(a * size for a, size in zip(by_class, sizes, strict=True)) / sum(sizes)
    result = ValidationResult(clean, 0.5, class_accuracies=by_class, class_sizes=sizes)
    rows = [
        epoch_row(n, val_clean_accuracy=clean, val_balanced_accuracy=result.balanced_accuracy) for n in (1, 2)
    ]
    assert CollapseGuard(config(balanced=True), 10).warning(rows[:1], rows[1], result) == sign


def test_chance_among_six_classes_of_few_images_is_seen() -> None:
    """A sixth has no end, and rows are rounded."""
    guard = CollapseGuard(config(), 10)
    result = ValidationResult(1 / 6, 0.1, class_accuracies=(1.0,) + (0.0,) * 5, class_sizes=(2,) * 6)
    row = epoch_row(1, val_clean_accuracy=round(1 / 6, 6), val_balanced_accuracy=round(1 / 6, 6))
    assert guard.warning([], row, result) == "at-chance"


@pytest.mark.parametrize(
    ("epochs", "gives_way"),
    [([BRITTLE] * 12, 10), ([GOOD, *[BRITTLE] * 5], 4), ([GOOD, BRITTLE, GOOD], None)],
)
def test_one_step_attacks_give_way_and_end_no_run(
    epochs: list[tuple[float, float]], gives_way: int | None
) -> None:
    rows = judged(config(), epochs, val_fgsm_accuracy=0.9)
    assert len(rows) == len(epochs)
    assert (
        next((row.epoch for n, row in enumerate(rows, 1) if has_lost_one_step(rows[:n])), None) == gives_way
    )


@pytest.mark.parametrize("initial", [None, "abc"])
def test_after_a_fallback_the_run_has_time_to_recover(initial: str | None) -> None:
    """Its robust epochs were of one step; averaged weights remember that a while."""
    guard, result = (
        CollapseGuard(config(initial_weights=initial), 10),
        ValidationResult(*BRITTLE, class_sizes=SIZES),
    )
    rows = [epoch_row(1, val_clean_accuracy=0.6, val_pgd_accuracy=0.3, val_fgsm_accuracy=0.4)]
    for epoch in range(2, 13):
        new = epoch_row(epoch, val_clean_accuracy=0.9, val_pgd_accuracy=0.0)
        rows.append(replace(new, warning=guard.warning(rows, new, result)))
        if has_collapsed(rows):
            break
    assert rows[-1].epoch == 11


def test_a_class_that_was_known_and_is_lost() -> None:
    known, without = (0.8,) * 4, (0.8, 0.0, 0.8, 0.8)
    rows = judged(config(), [GOOD] * 12, [known] * 3 + [without] * 9)
    assert rows[-1].warning == f"{COLLAPSED}lost-class 1"
    assert rows[-1].epoch == 8
    assert not has_collapsed(judged(config(), [GOOD] * 12, [without] * 12))  # never learnt is not lost
    assert not has_collapsed(judged(config(), [GOOD] * 12, [known] * 3 + [without, known] * 4 + [known]))


def test_a_run_that_loses_another_class_in_each_epoch_is_young_and_not_lost() -> None:
    known, others = (0.8,) * 4, [(0.8, 0.0, 0.8, 0.8), (0.8, 0.8, 0.0, 0.8)]
    rows = judged(config(), [GOOD] * 13, [known] * 3 + others * 5)
    assert not has_collapsed(rows)
    assert [row.warning for row in rows[-2:]] == ["lost-class 1", "lost-class 2"]


def test_a_run_that_gets_better_without_a_class_goes_on() -> None:
    known, without = (0.8,) * 4, (0.8, 0.0, 0.8, 0.8)
    better = [(0.6 + 0.01 * epoch, 0.3 + 0.01 * epoch) for epoch in range(12)]
    rows = judged(config(), better, [known] * 3 + [without] * 9)
    assert not has_collapsed(rows)
    assert rows[-1].warning == "lost-class 1"
    # Where it no longer does, the last five epochs alone say nothing: it was best without the class.
    assert not has_collapsed(judged(config(), better[:5] + [GOOD] * 7, [known] * 3 + [without] * 9))


@pytest.mark.parametrize(
    ("settings", "epochs", "words", "change"),
    [
        (
            {},
            [GOOD] + [CHANCE] * 3,
            "that of chance (25.0% clean). model.safetensors keeps epoch 1",
            "--lr 0.01",
        ),
        ({}, [BRITTLE] * 3, "not robust at all (0.0% PGD). No epoch before was any better", "--eps-ramp 6"),
        ({"backbone_lr": 0.0}, [BRITTLE] * 3, "not robust at all", "--backbone-lr 0.1"),
        ({"eps_ramp": 4}, [BRITTLE] * 7, "not robust at all", "--eps-ramp 8, or --lr 0.01"),
    ],
)
def test_the_error_says_what_to_change(
    settings: dict[str, Any], epochs: list[tuple[float, float]], words: str, change: str
) -> None:
    chosen = config(**settings)
    rows = judged(chosen, epochs)
    error = collapsed(rows[-1], rows[0], chosen, RunFolder(Path("runs/a")), "abcd")
    assert words in error.cause
    assert change in str(error.next_step)
    assert error.exit_code == 1


DIGITS = [
    "--dataset",
    "digits",
    "--ducat",
    "off",
    "--threads",
    "1",
    "--device",
    "cpu",
    "--precision",
    "float32",
]


SMALL = ["--network", "resnet-small", "--batch-size", "256"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without attacks: accurate, and not robust."""
    folder = tmp_path_factory.mktemp("runs") / "plain"
    flags = ["--network", "resnet-small", "--batch-size", "64", "--method", "standard", "--epochs", "3"]
    assert run(["train", *DIGITS, *flags, "--out", str(folder)]) == 0
    return folder


@pytest.mark.integration
@pytest.mark.parametrize(
    ("settings", "sign", "said", "change"),
    [
        pytest.param(
            ["--eps", "0.5", "--step-size", "0.2", "--attack-steps", "5", "--lr", "1e-9"],
            "not-robust",
            "not robust at all",
            "--eps-ramp 1",
            id="eps from the first step",
        ),
        pytest.param(
            ["--eps", "0.4", "--attack-steps", "5", "--backbone-lr", "0", "--lr", "0.01"],
            "not-robust",
            "not robust at all",
            "--backbone-lr 0.1",
            id="frozen layers",
        ),
        pytest.param(
            ["--eps", "0.1", "--attack-steps", "1", "--optimizer", "adamw", "--lr", "0.05"],
            "at-chance",
            "accuracy on val is that of chance",
            "--lr 0.005",
            id="too large a rate",
        ),
    ],
)
def test_forced_collapses(
    settings: list[str],
    sign: str,
    said: str,
    change: str,
    plain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Real runs from accurate weights: ended with the reason, the best weights kept, and seen in `ducat runs`."""
    folder = tmp_path / "run"
    start = ["--initial-checkpoint", str(plain), "--epochs", "8", "--out", str(folder), "--json"]
    capsys.readouterr()
    assert run(["train", *DIGITS, *SMALL, *settings, *start]) == 1
    printed = capsys.readouterr()
    events = [json.loads(line) for line in printed.err.splitlines() if line.startswith("{")]
    assert any(e["event"] == "warning" and said in e["text"] for e in events)
    (error,) = [e for e in events if e["event"] == "error"]
    assert "has collapsed by epoch" in error["text"]
    assert said in error["text"]
    assert change in error["next"]
    assert read_spec(folder / "model.safetensors").network == "resnet-small"
    assert run(["runs", str(tmp_path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert (found["state"], found["warning"]) == ("collapsed", sign)


@pytest.mark.integration
def test_a_healthy_run_from_the_same_weights_goes_to_its_end(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--eps", "0.05", "--attack-steps", "2", "--lr", "0.05", "--eps-ramp", "1", "--epochs", "5"]
    start = ["--initial-checkpoint", str(plain), "--out", str(tmp_path / "run"), "--json"]
    assert run(["train", *DIGITS, *SMALL, *settings, *start]) == 0
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert not [e for e in events if e["event"] == "warning" and "val" in e["text"]]
    assert run(["runs", str(tmp_path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert (found["state"], found["warning"]) == ("finished", "")
