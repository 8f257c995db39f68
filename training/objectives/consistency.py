"""Consistency-AT (Tack et al. 2022, arXiv 2103.04623, eq. 7): two augmented views, attacked alike, should agree.

PGD adversarial training on both views plus the Jensen-Shannon divergence of the two attacked posteriors, sharpened
by a temperature of 0.5. Weight 1, as the paper of DUCAT uses it.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.objectives.objective import Batch, Objective

_TEMPERATURE = 0.5


class Consistency(Objective):
    """Consistency-AT with any mode of DUCAT. A batch holds all first views, then all second ones."""

    views: ClassVar[int] = 2

    def loss(self, model: nn.Module, batch: Batch, adversarial: Tensor) -> Tensor:
        clean, attacked = self.forward_classified(model, batch, adversarial)
        classification = self.classification(clean, attacked, batch.labels)
        return classification + self._disagreement(attacked).mean()

    def _disagreement(self, attacked: Tensor) -> Tensor:
        # Sharpening a posterior: dividing its log by the temperature, and normalising again.
        sharp = (self.ducat.log_posterior(attacked) / _TEMPERATURE).log_softmax(dim=1)
        first, second = sharp.chunk(2)
        mean = torch.logaddexp(first, second) - math.log(2)

        def divergence(p: Tensor) -> Tensor:
            return F.kl_div(mean, p, reduction="none", log_target=True).sum(dim=1)

        return (divergence(first) + divergence(second)) / 2
