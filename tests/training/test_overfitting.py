"""Robust and catastrophic overfitting are told from what chance does to accuracies on few images."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace

import pytest

from tests.support.training_runs import epoch_row
from training.chance import Chance
from training.overfitting import is_catastrophic, is_overfitting

DIGITS = Chance((15, 15, 15, 15, 15, 14, 14, 14, 14, 14))  # 145 images
MANY = Chance((100,) * 10)


def catastrophic(history: list[tuple[float, float, float]], chance: Chance = MANY) -> bool:
    """Of epochs with so much clean accuracy, under PGD and under FGSM."""
    rows = [
        epoch_row(
            val_clean_accuracy=clean,
            val_balanced_accuracy=clean,
            val_pgd_accuracy=pgd,
            val_fgsm_accuracy=fgsm,
        )
        for clean, pgd, fgsm in history
    ]
    return is_catastrophic(rows, chance)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([(0.6, 0.3, 0.4)], False),
        ([(0.6, 0.3, 0.4), (0.8, 0.0, 0.8)], True),
        ([(0.6, 0.3, 0.4), (0.7, 0.14, 0.4)], True),
        ([(0.6, 0.3, 0.4), (0.7, 0.0, 0.39)], True),  # a point less under FGSM is not what ends it
        ([(0.6, 0.3, 0.4), (0.7, 0.16, 0.8)], False),  # fell, but not by half
        ([(0.6, 0.3, 0.4), (0.3, 0.1, 0.2)], False),  # both fell: a bad epoch, no overfitting to one step
        ([(0.6, 0.3, 0.4), (0.6, 0.35, 0.45), (0.7, 0.1, 0.44)], True),
        ([(0.1, 0.1, 0.1), (0.4, 0.034, 0.3)], False),  # one answer for all images, which no attack moves
        (
            [(0.2, 0.12, 0.13), (0.45, 0.05, 0.15)],
            False,
        ),  # it begins to tell images apart, and one step hurts
    ],
)
def test_what_catastrophic_overfitting_is(history: list[tuple[float, float, float]], expected: bool) -> None:
    assert catastrophic(history) is expected


def test_three_images_of_fifty_are_no_collapse() -> None:
    history = [(0.5, 0.1, 0.3), (0.5, 0.04, 0.3)]
    assert not catastrophic(history, Chance((5,) * 10))
    assert catastrophic(history, Chance((100,) * 10)), "sixty of a thousand are"


@pytest.mark.parametrize(
    ("sizes", "history"),
    [
        ((900, 100), [(0.85, 0.75, 0.8), (0.9, 0.05, 0.95)]),
        ((600, 200, 200), [(0.7, 0.58, 0.6), (0.8, 0.04, 0.8)]),
        ((500, 500), [(0.8, 0.48, 0.5), (0.9, 0.05, 0.9)]),
        ((5,) * 200, [(0.3, 0.08, 0.1), (0.4, 0.01, 0.4)]),
    ],
)
def test_robustness_is_lost_among_few_classes_common_ones_and_many(
    sizes: tuple[int, ...], history: list[tuple[float, float, float]]
) -> None:
    assert catastrophic(history, Chance(sizes))


def test_a_run_that_learns_is_not_taken_for_one_that_overfits() -> None:
    """PGD accuracy from 2 to 20 % in 30 epochs, measured on 50 and on 145 images; FGSM some points above."""
    for sizes in ((5,) * 10, DIGITS.class_sizes):
        chance, fired = Chance(sizes), 0
        for seed in range(200):
            draw = random.Random(seed)
            history: list[tuple[float, float, float]] = []
            for epoch in range(30):
                share = 0.02 + 0.18 * epoch / 29
                pgd = sum(draw.random() < share for _ in range(chance.images)) / chance.images
                history.append((0.5, pgd, pgd + 0.1))
                if catastrophic(history, chance):
                    fired += 1
                    break
        assert fired <= 2


def falls(accuracies: list[float], chance: Chance = MANY) -> list[int]:
    """The epochs that are called out as robust overfitting."""
    rows = [epoch_row(epoch, val_pgd_accuracy=accuracy) for epoch, accuracy in enumerate(accuracies, 1)]
    return [n for n in range(1, len(rows) + 1) if is_overfitting(rows[:n], chance)]


def test_robust_overfitting_is_called_out_once() -> None:
    said = falls([0.5] * 5 + [0.4] * 15)
    assert len(said) == 1
    assert 6 < said[0] <= 10
    assert falls([]) == []
    assert falls([0.5] * 20) == []
    assert falls([0.3 + 0.01 * epoch for epoch in range(20)]) == []


def test_noise_does_not_call_it_out_again() -> None:
    for seed in range(60):
        draw = random.Random(seed)
        accuracies = [0.6 - 0.1 * epoch / 59 + draw.gauss(0, 0.03) for epoch in range(60)]
        assert len(falls(accuracies, DIGITS)) <= 1


def test_a_slow_decline_is_seen_through_the_noise_of_epochs() -> None:
    """Seven points in 30 epochs; no decline is rarely taken for one."""
    declining, steady = [], []
    for seed in range(100):
        noise = [random.Random(1000 * seed + n).gauss(0, 0.006) for n in range(40)]
        declining.append(bool(falls([0.45 - 0.07 * max(0, n - 10) / 29 + noise[n] for n in range(40)])))
        steady.append(bool(falls([0.45 + noise[n] for n in range(40)])))
    assert statistics.fmean(declining) > 0.9
    assert statistics.fmean(steady) < 0.05


def test_the_phase_of_dummies_is_not_held_against_the_one_before() -> None:
    accuracies = [0.5] * 10 + [0.3] * 10
    rows = [
        replace(epoch_row(n, val_pgd_accuracy=accuracy), phase="adversarial" if n <= 10 else "dummy")
        for n, accuracy in enumerate(accuracies, 1)
    ]
    assert not any(is_overfitting(rows[:n], MANY) for n in range(1, 21))
