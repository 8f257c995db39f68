"""What a run is stopped or warned for: losses that are not sound, catastrophic and robust overfitting."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

from training.run.metrics import EpochRow

OVERFITTING_EPOCHS = 5
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


def is_catastrophic(rows: Sequence[EpochRow]) -> bool:
    """Whether training on one-step attacks has just stopped to protect against others (catastrophic overfitting).

    PGD accuracy on val is less than half of its best, and FGSM accuracy no lower than it was then. ``rows`` are epochs
    of one-step attacks, whose FGSM accuracy was measured.
    """
    best, now = max(rows, key=lambda row: row.val_pgd_accuracy), rows[-1]
    assert best.val_fgsm_accuracy is not None
    assert now.val_fgsm_accuracy is not None
    collapsed = now.val_pgd_accuracy < best.val_pgd_accuracy / 2
    return collapsed and now.val_fgsm_accuracy >= best.val_fgsm_accuracy


def is_overfitting(rows: Sequence[EpochRow]) -> bool:
    """Whether robust accuracy on val has just fallen for the ``OVERFITTING_EPOCHS``-th epoch in a row."""
    falls = [later.val_pgd_accuracy < earlier.val_pgd_accuracy for earlier, later in itertools.pairwise(rows)]
    recent = falls[-OVERFITTING_EPOCHS - 1 :]
    return (
        len(recent) >= OVERFITTING_EPOCHS
        and all(recent[-OVERFITTING_EPOCHS:])
        and (len(recent) == OVERFITTING_EPOCHS or not recent[0])
    )


def catastrophic_warning(row: EpochRow, attack_steps: int) -> str:
    return (
        "catastrophic overfitting: PGD val accuracy collapsed while accuracy under one-step attacks did not. "
        f"From epoch {row.epoch + 1} on the inner attack is PGD-{attack_steps}."
    )


def overfitting_warning(kept: EpochRow, model: str) -> str:
    return (
        f"robust overfitting: PGD val accuracy fell for {OVERFITTING_EPOCHS} epochs; "
        f"{model} keeps epoch {kept.epoch}."
    )
