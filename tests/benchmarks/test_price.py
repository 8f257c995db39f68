"""The price study (benchmarks/price.py): what a budget buys, and what is concluded from rows."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from price import OBJECTIVES, Planned, main, passes_of_run, passes_per_image, recorded
from price_report import baseline_clean, lead, price, verdict, write
from price_rows import Row, points

from ducat_serve.errors import UsageError
from tests.support import training_runs
from training.evaluation.runner import counted


def row(objective: str, mode: str, clean: float, worst: float, seed: int = 0) -> Row:
    return Row(
        objective=objective,
        mode=mode,
        seed=seed,
        command="ducat train",
        epochs=3,
        passes=30.0,
        fell_back=False,
        train_seconds=1.0,
        evaluate_seconds=1.0,
        clean=clean,
        clean_interval=(clean - 0.1, clean + 0.1),
        worst_case=worst,
        worst_case_interval=(worst - 0.1, worst + 0.1),
        failed_checks=(),
        data="digits, 9 test images",
        threat_model="linf 0.2",
        network="resnet-small",
        weights_digest="w",
        data_digest="d",
    )


def test_a_budget_buys_epochs_by_what_an_image_costs() -> None:
    epochs = {
        objective: Planned("digits", objective, "off", 0, 260, 9).config().epochs for objective in OBJECTIVES
    }
    assert (epochs["pgd-at"], epochs["half"], epochs["trades-6"], epochs["guided-10"]) == (20, 16, 15, 30)
    folded = Planned("digits", "pgd-at", "folded", 0, 260, 9).config()
    assert folded.epochs == 19, "with dummies PGD-AT learns from clean images too"
    assert passes_of_run(folded) <= 260 < passes_of_run(folded) + 16


@pytest.mark.integration
@pytest.mark.parametrize("objective", ["pgd-at", "half", "trades-6", "guided-10", "pairing-0.5"])
@pytest.mark.parametrize("mode", ["off", "folded"])
def test_passes_are_those_that_a_step_makes(objective: str, mode: str, tmp_path: Path) -> None:
    """Counted on the network itself: two passes for each gradient of the attack, three for each image of an update."""
    dummies = {"ducat": mode, "ducat_start": 1 if mode == "folded" else None}
    small = {"attack_steps": 3, "batch_size": 16, "epochs": 2}
    trainer = training_runs.trainer(tmp_path, **{**small, **dummies, **OBJECTIVES[objective]})
    trainer.classifier.train()
    order, images = trainer.batches.order(1), trainer.config.batch_size
    passes = 0.0
    for step in (0, 1):  # guided training looks at clean images in every second one
        with counted(trainer.step.attack_model) as attack, counted(trainer.classifier) as update:
            trainer.train_step(order, 1, step)
        passes += 2 * attack.gradient_steps + attack.forward_passes + 3 * update.forward_passes
    expected = passes_per_image(trainer.config, dummies=mode == "folded")
    assert passes == 2 * images * expected


def test_between_two_networks_lies_what_a_coin_reaches() -> None:
    baseline = [(90.0, 50.0), (80.0, 60.0), (70.0, 40.0)]
    assert baseline_clean(baseline, 50) == 90
    assert baseline_clean(baseline, 55) == pytest.approx(85)
    assert baseline_clean(baseline, 45) == 90, "a network that is worse on both counts lends nothing"
    assert baseline_clean(baseline, 61) is None


def test_a_row_leads_by_clean_points_at_equal_worst_case() -> None:
    rows = [row("pgd-at", "off", 0.90, 0.50), row("trades-6", "off", 0.80, 0.60)]
    for found, expected in (
        (row("guided-10", "off", 0.88, 0.55), 3.0),
        (row("guided-10", "off", 0.83, 0.65), 3.0),  # more robust than any: beside the most robust
        (row("guided-10", "off", 0.99, 0.45), None),  # nobody knows what they pay there
        (row("guided-10", "off", 0.99, 0.55, seed=1), None),  # another seed's networks say nothing
    ):
        assert lead(found, [*rows, found]) == (None if expected is None else pytest.approx(expected))


def test_the_price_is_worst_case_points_for_a_clean_point() -> None:
    plain, dear, free = points(
        [
            row("pgd-at", "off", 0.90, 0.50),
            row("half", "off", 0.92, 0.47),
            row("trades-1", "off", 0.903, 0.40),
        ]
    )
    assert price(dear, plain) == pytest.approx(1.5)
    assert price(free, plain) is None, "too small a gain to divide by"


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ([0.02, 0.021, 0.019], "Dummies add something"),
        ([-0.02, -0.021, -0.019], "Dummies cost something"),
        ([0.02, -0.03, 0.01], "nothing that these runs can tell from noise"),
    ],
)
def test_the_verdict_on_dummies_follows_the_pairs_that_differ_in_them_alone(
    gains: list[float], said: str
) -> None:
    rows = []
    for seed, gain in enumerate(gains):
        rows += [row("half", "off", 0.9, 0.5, seed), row("half", "folded", 0.9, 0.5 + gain, seed)]
    assert said in verdict(rows)[0]
    # A pair whose classification loss differs too cannot change that sentence.
    rows += [row("guided-10", "off", 0.9, 0.9), row("guided-10", "folded", 0.9, 0.1)]
    assert said in verdict(rows)[0]


def test_pairs_of_one_seed_are_one_value() -> None:
    """They share their first weights: as independent values these six would be a clear gain."""
    rows = []
    for seed, gain in enumerate([0.02, 0.0]):
        for objective in ("half", "pairing-0.5", "pairing-1"):
            rows += [row(objective, "off", 0.9, 0.5, seed), row(objective, "folded", 0.9, 0.5 + gain, seed)]
    said = verdict(rows)[0]
    assert said.startswith(
        "Dummies add nothing that these runs can tell from noise: in 6 pairs of runs with 2 seeds"
    )
    # Student's t with one degree of freedom: 12.706 standard errors, each of 1 point.
    assert "+1.0 (95 % interval -11.7 to +13.7) points of worst case" in said
    alone = verdict([one for one in rows if one.seed == 0])[0]
    assert alone.startswith("One seed cannot tell")
    assert "+2.0 (one seed, no interval) points of worst case" in alone


def test_the_goal_is_judged_by_the_leads() -> None:
    rows = [row("pgd-at", "off", 0.90, 0.50), row("trades-6", "off", 0.80, 0.60)]
    assert verdict([*rows, row("guided-10", "off", 0.88, 0.55)])[-1].startswith(
        "A curve is 2 clean points above"
    )
    assert verdict([*rows, row("guided-10", "off", 0.86, 0.55)])[-1].startswith(
        "No curve is 2 clean points above"
    )


def test_what_is_written_is_read_again_and_the_same(tmp_path: Path) -> None:
    rows = [row("pgd-at", "off", 0.9, 0.5), row("guided-2.5", "folded", 0.92, 0.45)]
    stem = tmp_path / "price-digits"
    write(stem, rows, "the command")
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(first) == ["price-digits.json", "price-digits.md", "price-digits.png", "price-digits.svg"]
    read = [Row.read(document) for document in json.loads(first["price-digits.json"]).values()]
    assert sorted(read, key=lambda r: r.name) == sorted(rows, key=lambda r: r.name)
    write(stem, rows, "the command")
    assert first == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_call_for_some_rows_loses_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = [Planned("digits", "pgd-at", mode, 0, 30, 9) for mode in ("off", "folded")]
    rows = [replace(row("pgd-at", one.mode, 0.9, 0.3), command=one.command) for one in planned]
    file = tmp_path / "price-digits.json"
    write(tmp_path / "price-digits", rows, "the command")
    before = json.loads(file.read_text())

    options = ["--dataset", "digits", "--samples", "9", "--budget", "30", "--seeds", "0", "--only-write"]
    for rows_asked_for in (["half"], ["pgd-at"]):
        asked = [*options, "--rows", *rows_asked_for, "--results", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["price.py", *asked])
        main()
        assert json.loads(file.read_text()) == before
    command = "python benchmarks/price.py --dataset digits --rows pgd-at --seeds 0 --samples 9 --budget 30"
    assert command in (tmp_path / "price-digits.md").read_text()


def test_rows_of_two_studies_do_not_mix(tmp_path: Path) -> None:
    planned = Planned("digits", "half", "off", 0, 30, 9)
    known = replace(row("half", "off", 0.9, 0.3), command=planned.command)
    write(tmp_path / "price-digits", [known], "the command")
    file = tmp_path / "price-digits.json"
    assert list(recorded(file, "digits", 30, 9)) == ["half-off-0"]
    for budget, samples in ((60, 9), (30, 10)):
        with pytest.raises(UsageError, match="has half-off-0 of another budget"):
            recorded(file, "digits", budget, samples)


def test_a_row_of_before_precision_was_recorded_says_so() -> None:
    document = {**asdict(row("half", "off", 0.9, 0.3))}
    del document["precision"]
    assert Row.read(document).precision == "not recorded"
