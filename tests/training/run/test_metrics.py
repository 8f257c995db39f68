"""Which epoch of a run is the best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.support.training_runs import epoch_row
from training.resolve import resolve
from training.run.metrics import EpochRow, RunSummary, kept_row


def test_the_row_that_is_shown_is_that_of_the_kept_weights() -> None:
    """By legacy accuracy once dummies are trained, as `paper` chooses; the first of equals; never an earlier phase."""

    def row(epoch: int, pgd: float, legacy: float | None, clean: float = 0.9) -> EpochRow:
        return epoch_row(epoch, val_pgd_accuracy=pgd, val_legacy_accuracy=legacy, val_clean_accuracy=clean)

    config = resolve("digits", {"epochs": 5, "ducat_start": 3})
    before = [row(1, 0.5, None), row(2, 0.8, None)]
    phase = [row(3, 0.6, 0.7), row(4, 0.4, 0.9), row(5, 0.7, 0.9)]
    assert kept_row([], config) is None
    assert kept_row(before, config) is before[1]
    assert kept_row([*before, phase[0]], config) is phase[0]
    assert kept_row([*before, *phase], config) is phase[1]
    better = row(5, 0.1, 0.9, clean=0.95)
    assert kept_row([*before, *phase[:2], better], config) is better
    off = resolve("digits", {"epochs": 5, "ducat": "off"})
    assert kept_row(before, off) is before[1]
    first = resolve("digits", {"epochs": 5, "ducat_start": 2})
    assert kept_row(before, first) is before[1]  # the first epoch with dummies is one of them


def test_epochs_compete_only_where_one_attack_measured_them() -> None:
    """The older version attacked with one step, which flattered; its epoch would stay the best for ever."""
    config = resolve("digits", {"epochs": 5, "ducat": "off"})
    weak = epoch_row(1, val_pgd_accuracy=0.9)
    strong = [
        replace(epoch_row(n, val_pgd_accuracy=pgd), val_attack="pgd-10") for n, pgd in ((2, 0.4), (3, 0.3))
    ]
    assert kept_row([weak], config) is weak
    assert kept_row([weak, *strong], config) is strong[0]
    with_dummies = resolve("digits", {"epochs": 3, "ducat_start": 2})
    summary = RunSummary.of([weak, *strong], with_dummies, Path("m"), "digits")
    assert (summary.best_epoch, summary.pre_dummy_val_pgd_accuracy) == (2, None)
