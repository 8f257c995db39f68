"""PGD adversarial training (Madry et al. 2018, arXiv 1706.06083)."""

from __future__ import annotations

from torch import Tensor, nn

from training.objectives.objective import Batch, Objective


class AdversarialTraining(Objective):
    """Cross entropy on adversarial images; with dummies, two-hot labels over both halves."""

    def loss(self, model: nn.Module, batch: Batch, adversarial: Tensor) -> Tensor:
        clean, attacked = self.forward_classified(model, batch, adversarial)
        return self.classification(clean, attacked, batch.labels)
