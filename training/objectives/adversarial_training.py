"""PGD adversarial training (Madry et al. 2018, arXiv 1706.06083)."""

from __future__ import annotations

from torch import Tensor, nn

from training.objectives.objective import Batch, Objective, forward_both, in_float


class AdversarialTraining(Objective):
    """Cross entropy on adversarial images; with dummies, two-hot labels over both halves."""

    def loss(self, model: nn.Module, batch: Batch, adversarial: Tensor) -> Tensor:
        if self.ducat.trains_dummies:
            clean, attacked = forward_both(model, batch.images, adversarial)
            return self.ducat.two_hot_cross_entropy(clean, attacked, batch.labels)
        return self.ducat.cross_entropy(in_float(model(adversarial)), batch.labels).mean()
