"""APGD on the cross entropy: of the deployed logits, and of the lse-fold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from training.attacks.apgd import APGD
from training.attacks.base import TargetModel
from training.attacks.losses import LossOfFold, cross_entropy, lse_cross_entropy


@dataclass(frozen=True)
class APGDCrossEntropy(APGD):
    """On the cross entropy of the deployed logits."""

    name: ClassVar[str] = "apgd-ce"
    loss: LossOfFold = cross_entropy


@dataclass(frozen=True)
class APGDLse(APGD):
    """On the cross entropy of the lse-fold, which is smooth where the max-fold is not."""

    name: ClassVar[str] = "apgd-lse"
    needs_dummies: ClassVar[bool] = True
    knows_pairs: ClassVar[bool] = True
    loss: LossOfFold = lse_cross_entropy

    def applies(self, target: TargetModel) -> bool:
        """For a model that is deployed through the lse-fold it is `apgd-ce`."""
        return super().applies(target) and target.fold != "lse"
