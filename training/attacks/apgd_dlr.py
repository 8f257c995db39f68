"""APGD on the difference of logits ratio."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from training.attacks.apgd import APGD
from training.attacks.base import TargetModel
from training.attacks.losses import LossOfFold, dlr, margin


@dataclass(frozen=True)
class APGDDLR(APGD):
    """On DLR of the deployed logits; on their margin where there are fewer than 4 classes."""

    name: ClassVar[str] = "apgd-dlr"
    loss: LossOfFold = dlr

    def fitted(self, target: TargetModel) -> Self:
        """DLR's denominator is the gap to the third logit, which means little among fewer than 4."""
        return self if target.num_classes >= 4 else replace(self, loss=margin)
