"""What counts as success: an object apart from the attack, so that one attack serves several questions.

A criterion maps raw logits float [N, 2C] (or [N, C] for a model without dummies) and labels int64 [N] to bool [N].
It looks through the fold, so a win of the label's own dummy is no success against the deployed function.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ducat_serve.pairs import fold_logits
from ducat_serve.spec import Fold, Switch
from ducat_serve.switch import certainty

Criterion = Callable[[Tensor, Tensor], Tensor]
Score = Callable[[Tensor], Tensor]  # raw logits [N, 2C] to [N]; an image is flagged where it is high


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the decision on C logits is the label, bool [N]. NaN decides nothing: wrong, never robust."""
    return (logits.argmax(dim=1) == labels) & ~logits.isnan().any(dim=1)


def misclassified(fold: Fold) -> Criterion:
    """The deployed decision is not the label."""

    def success(raw: Tensor, labels: Tensor) -> Tensor:
        return ~right(fold_logits(raw, fold), labels)

    return success


def unsure(switch: Switch) -> Criterion:
    """On the C logits of a robust tower alone: it would not carry the label against every standard tower.

    The criterion of the floor. It is met wherever `misclassified` is on both towers (`ducat_serve.switch.certainty`).
    """

    def success(raw: Tensor, labels: Tensor) -> Tensor:
        return ~(certainty(raw, labels, switch) >= switch.threshold)  # NaN carries nothing

    return success


def misclassified_unflagged(fold: Fold, score: Score, threshold: float) -> Criterion:
    """The deployed decision is not the label, and ``score`` is not above the threshold either."""

    def success(raw: Tensor, labels: Tensor) -> Tensor:
        return ~right(fold_logits(raw, fold), labels) & ~(score(raw) > threshold)

    return success


def never(_raw: Tensor, labels: Tensor) -> Tensor:
    """Nothing is a success: a search takes all of its steps."""
    return torch.zeros_like(labels, dtype=torch.bool)
