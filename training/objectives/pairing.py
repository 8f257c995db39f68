"""Adversarial logit pairing (Kannan, Kurakin and Goodfellow 2018, arXiv 1803.06373, section 4.1).

``CE(x) + CE(x_adv) + beta * mean_k (z_k - z'_k)^2`` with logits z of an image and z' of its adversarial
counterpart. With dummies both cross entropies are DUCAT's. `folded` pairs the lse-folded logits, so the split
of each pair stays free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from training.objectives.objective import Batch, Objective, forward_both


@dataclass(frozen=True)
class Pairing(Objective):
    """Adversarial logit pairing with any mode of DUCAT."""

    beta: float = 0.5
    plain_clean_share: ClassVar[float] = 0.5

    def loss(self, model: nn.Module, batch: Batch, adversarial: Tensor) -> Tensor:
        clean, attacked = forward_both(model, batch.images, adversarial)
        gap = (self.ducat.logits(clean) - self.ducat.logits(attacked)).square().mean(dim=1)
        # Published as a sum of two cross entropies; `classification` is a mean.
        return 2 * self.classification(clean, attacked, batch.labels) + self.beta * gap.mean()
