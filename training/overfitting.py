"""What a run is stopped or warned for: losses that are not sound, catastrophic and robust overfitting."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from training.chance import Chance
from training.run.metrics import EpochRow

OVERFITTING_EPOCHS = 5  # whose mean is held against that of as many before
_ERRORS = 3.0  # standard errors: the best of many epochs is partly luck
_ERRORS_OF_MEANS = 2.0
# A spike: this many times the median of recent losses, and of what guessing costs.
SPIKE = 10.0
_RECENT = 50


def is_sound(loss: float, losses: Sequence[float], num_logits: int) -> bool:
    """Whether a loss is finite, and in proportion to those before it."""
    return math.isfinite(loss) and not is_spike(loss, losses, num_logits)


def is_spike(loss: float, losses: Sequence[float], num_logits: int) -> bool:
    """Whether a loss is out of all proportion to those before it; without any, nothing is known of the proportion."""
    if not losses:
        return False
    usual = statistics.median(losses[-_RECENT:])
    return loss > SPIKE * max(usual, math.log(num_logits))


def is_catastrophic(rows: Sequence[EpochRow], chance: Chance) -> bool:
    """Whether training on one-step attacks has just stopped to protect against others (catastrophic overfitting).

    PGD accuracy on val has fallen from its best to less than a half, by more than chance would; accuracy under FGSM has
    fallen by less than half as much, and one step leaves at least half of clean accuracy. Epochs at chance do not
    count: no attack moves a network that gives one answer to every image. ``rows`` are epochs of one-step attacks.
    """
    now, above_chance = rows[-1], filter(chance.is_exceeded_by, rows)
    best = max(above_chance, key=lambda row: row.val_pgd_accuracy, default=None)
    if best is None or now.val_pgd_accuracy >= best.val_pgd_accuracy / 2:
        return False
    assert best.val_fgsm_accuracy is not None
    assert now.val_fgsm_accuracy is not None
    fall = best.val_pgd_accuracy - now.val_pgd_accuracy
    # What both would be if nothing but chance lay between them.
    mean = (best.val_pgd_accuracy + now.val_pgd_accuracy) / 2
    error = chance.standard_error(mean, mean)
    return (
        fall > _ERRORS * error
        and best.val_fgsm_accuracy - now.val_fgsm_accuracy < fall / 2
        and now.val_fgsm_accuracy >= now.val_clean_accuracy / 2
    )


def is_overfitting(rows: Sequence[EpochRow], chance: Chance) -> bool:
    """Whether robust accuracy on val is seen to have fallen; once in a phase, in the epoch that shows it first."""
    return _has_fallen(rows, chance) and not any(
        _has_fallen(rows[:end], chance)
        for end in range(1, len(rows))
        if rows[end - 1].phase == rows[-1].phase
    )


def _has_fallen(rows: Sequence[EpochRow], chance: Chance) -> bool:
    """Whether the mean of the last epochs is below the best mean of as many before them by more than chance."""
    of_phase = [row.val_pgd_accuracy for row in rows if row.phase == rows[-1].phase]
    if len(of_phase) < 2 * OVERFITTING_EPOCHS:
        return False
    means = [statistics.fmean(window) for window in _windows(of_phase)]
    now, best = means[-1], max(means[:-OVERFITTING_EPOCHS])
    return best - now > _ERRORS_OF_MEANS * chance.standard_error(best, now)


def _windows(values: Sequence[float]) -> list[Sequence[float]]:
    ends = range(OVERFITTING_EPOCHS, len(values) + 1)
    return [values[end - OVERFITTING_EPOCHS : end] for end in ends]


def fallback_warning(row: EpochRow, attack_steps: int, *, catastrophic: bool) -> str:
    """What is said where PGD takes the place of one-step attacks: ``catastrophic`` or because they never protected."""
    cause = (
        "catastrophic overfitting: PGD val accuracy collapsed while accuracy under one-step attacks did not"
        if catastrophic
        else "training on one-step attacks protects against nothing else"
    )
    return f"{cause}. From epoch {row.epoch + 1} on the inner attack is PGD-{attack_steps}."


def overfitting_warning(kept: EpochRow, model: str) -> str:
    return (
        f"robust overfitting: PGD val accuracy of the last {OVERFITTING_EPOCHS} epochs is below what it was; "
        f"{model} keeps epoch {kept.epoch}."
    )
