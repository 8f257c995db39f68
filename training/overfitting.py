"""What a run is stopped or warned for: loss spikes, catastrophic and robust overfitting."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

OVERFITTING_EPOCHS = 5
# A spike: this many times the median of recent losses, and of what guessing costs.
SPIKE = 10.0
_RECENT = 50


def is_spike(loss: float, losses: list[float], num_logits: int) -> bool:
    """Whether a loss is out of all proportion to those before it in the epoch."""
    usual = statistics.median(losses[-_RECENT:]) if losses else 0.0
    return loss > SPIKE * max(usual, math.log(num_logits))


def is_catastrophic(rows: list[dict[str, Any]]) -> bool:
    """Whether training on one-step attacks has just stopped to protect against others (catastrophic overfitting).

    PGD accuracy on val is less than half of its best, and FGSM accuracy no lower than it was then.
    """
    best = max(rows, key=lambda row: float(row["val_pgd_accuracy"]))
    now = rows[-1]
    collapsed = now["val_pgd_accuracy"] < best["val_pgd_accuracy"] / 2
    return bool(collapsed and now["val_fgsm_accuracy"] >= best["val_fgsm_accuracy"])


def is_overfitting(accuracies: list[float]) -> bool:
    """Whether robust accuracy has just fallen for the ``OVERFITTING_EPOCHS``-th epoch in a row."""
    falls = [later < earlier for earlier, later in itertools.pairwise(accuracies)]
    recent = falls[-OVERFITTING_EPOCHS - 1 :]
    return (
        len(recent) >= OVERFITTING_EPOCHS
        and all(recent[-OVERFITTING_EPOCHS:])
        and (len(recent) == OVERFITTING_EPOCHS or not recent[0])
    )
