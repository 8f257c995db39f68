"""What chance alone may do to accuracies on val."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from training.run.metrics import EpochRow

_ENOUGH_IMAGES = 100


@dataclass(frozen=True)
class Chance:
    """Of val images, so many of each class."""

    class_sizes: Sequence[int]

    @property
    def images(self) -> int:
        return sum(self.class_sizes)

    @property
    def of_one_answer(self) -> float:
        """The accuracy that naming the most common class has at most. No attack moves it."""
        return self._no_more_than(max(self.class_sizes) / self.images)

    def is_exceeded_by(self, row: EpochRow) -> bool:
        """Whether an epoch beats naming the most common class, or, on average over classes, naming any one.

        On imbalanced data, a model that finds the rare classes may be less accurate than one that never names them.
        """
        if row.val_clean_accuracy > self.of_one_answer:
            return True
        of_a_class = 1 / sum(size > 0 for size in self.class_sizes)
        balanced = row.val_balanced_accuracy
        return balanced is not None and balanced > self._no_more_than(of_a_class)

    def standard_error(self, *accuracies: float) -> float:
        """That of the difference of two measured accuracies, or of one."""
        return math.sqrt(sum(accuracy * (1 - accuracy) for accuracy in accuracies) / self.images)

    def _no_more_than(self, accuracy: float) -> float:
        """What may be no better than ``accuracy``, rounded as rows are."""
        # Of few images, noise would cover real success.
        noise = 2 * self.standard_error(accuracy) if self.images >= _ENOUGH_IMAGES else 0.0
        return round(accuracy + noise, 6)
